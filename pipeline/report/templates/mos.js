"use strict";
const at = (id) => document.getElementById(id);
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
  at("face").onload = () => { busy = false; };
  at("face").onerror = () => { at("error").textContent = "This face cannot be shown. Reload the page."; };
  at("face").src = `/face/${face}.png`;
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
  if (plain && event.target.id !== "rater" && /^[1-5]$/.test(event.key)) rate(Number(event.key));
});
