"use strict";
(() => {
  const PAGE = 24; // cards added at a time: a phone lays out no more in one go
  const $ = (id) => document.getElementById(id);
  const list = $("cards");
  for (const box of document.querySelectorAll(".compare")) {
    const range = box.querySelector("input");
    if (!range) continue;
    range.addEventListener("input", () => {
      box.style.setProperty("--cut", `${range.value}%`);
      range.setAttribute("aria-valuetext", `${range.value} % original`);
    });
  }
  for (const button of document.querySelectorAll(".change")) {
    const box = button.closest(".card").querySelector(".compare");
    const [image, tag] = [box.querySelector(".after"), box.querySelector(".right")];
    const [source, alt, label] = [image.src, image.alt, tag.textContent];
    button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") === "false";
      button.setAttribute("aria-pressed", String(on));
      image.src = on ? button.firstChild.src : source;
      image.alt = on ? button.getAttribute("aria-label") : alt;
      tag.textContent = on ? button.nextElementSibling.textContent : label;
    });
  }
  if (!list) return;
  const number = (text) => (text === "" ? null : Number(text));
  const entries = [...list.children].map((card) => {
    const { name, status, reason, worst, psnr, slow } = card.dataset;
    const text = `${name} ${reason}`.toLowerCase();
    return { card, name, status, text, worst: number(worst), psnr: number(psnr), slow: number(slow) };
  });
  const by = (field, sign) => (a, b) => {
    const [x, y] = [a[field], b[field]];
    if (x === null || y === null) return (x === null ? 1 : 0) - (y === null ? 1 : 0); // no figure: last
    return sign * (x - y);
  };
  const names = new Intl.Collator("en", { numeric: true });
  const orders = {
    worst: by("worst", -1),
    psnr: by("psnr", 1),
    slow: by("slow", -1),
    name: (a, b) => names.compare(a.name, b.name),
  };
  let room = PAGE;
  let seen = [];
  const show = () => {
    const status = $("status").value;
    const wanted = $("text").value.trim().toLowerCase();
    entries.sort(orders[$("sort").value]);
    const matches = entries.filter((e) => (!status || e.status === status) && e.text.includes(wanted));
    for (const entry of entries) entry.card.hidden = true;
    seen = matches.slice(0, room).map((entry) => entry.card);
    for (const card of seen) card.hidden = false;
    list.append(...seen); // in order; the hidden ones stay where they are, since moving thousands takes seconds
    const all = `${matches.length} photo${matches.length === 1 ? "" : "s"}`;
    $("count").value = seen.length < matches.length ? `${seen.length} of ${all}` : all;
    $("more").hidden = seen.length === matches.length;
    $("none").hidden = matches.length > 0;
  };
  for (const [id, event] of [["sort", "change"], ["status", "change"], ["text", "input"]]) {
    $(id).addEventListener(event, () => {
      room = PAGE;
      show();
    });
  }
  document.querySelector(".tools").addEventListener("submit", (event) => event.preventDefault());
  $("more").addEventListener("click", () => {
    const first = seen.length;
    room += PAGE;
    show();
    seen[first].querySelector("input, button")?.focus(); // the keyboard goes on where the new cards begin
  });
  show();
})();
