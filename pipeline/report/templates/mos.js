"use strict";
const at = (id) => document.getElementById(id);
const pictures = ["photo", "face"].map(at).filter((picture) => picture !== null); // the page of faces has no photo
let rater = "", face = null, busy = true;
history.replaceState(null, "", "/"); // the cookie has the token now: keep it out of the history and of screenshots

async function ask(path, body) {
  busy = true;
  try {
    const reply = await fetch(path, {
      method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(body),
    });
    const found = await reply.json();
    if (reply.status === 403) throw new Error("open the address in the terminal again");
    if (!reply.ok) throw new Error(found.error);
    at("error").textContent = "";
    show(found);
  } catch (error) {
    at("error").textContent = `Not stored: ${error.message}. Try again.`;
    busy = false;
  }
}

function show(found) {
  face = found.face;
  at("who").hidden = true;
  at("rate").hidden = face === null;
  at("done").hidden = face !== null;
  at("count").textContent = `${found.rated} of ${found.faces} rated`;
  if (face === null) return;
  let waiting = pictures.length;
  for (const picture of pictures) {
    picture.onload = () => { waiting -= 1; busy = waiting > 0; };
    picture.onerror = () => { at("error").textContent = "This face cannot be shown. Reload the page."; };
    picture.src = `/${picture.id}/${face}.png`;
  }
}

function rate(score) {
  if (!busy && face !== null) ask("/rate", {rater, face, score});
}

at("who").addEventListener("submit", (event) => {
  event.preventDefault();
  rater = at("rater").value.trim();
  if (rater) ask("/next", {rater});
});
at("scale").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) rate(Number(button.dataset.score));
});
document.addEventListener("keydown", (event) => {
  const plain = !event.ctrlKey && !event.altKey && !event.metaKey && !event.repeat;
  if (plain && event.target.id !== "rater" && at("scale").querySelector(`[data-score="${CSS.escape(event.key)}"]`)) {
    rate(Number(event.key));
  }
});
