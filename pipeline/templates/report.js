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
  const cards = [...list.children];
  const figure = (card, name) => (card.dataset[name] === "" ? null : Number(card.dataset[name]));
  const by = (name, sign) => (a, b) => {
    const [x, y] = [figure(a, name), figure(b, name)];
    if (x === null || y === null) return (x === null ? 1 : 0) - (y === null ? 1 : 0); // no figure: last
    return sign * (x - y);
  };
  const orders = {
    worst: by("worst", -1),
    psnr: by("psnr", 1),
    slow: by("slow", -1),
    name: (a, b) => a.dataset.name.localeCompare(b.dataset.name, "en", { numeric: true }),
  };
  let room = PAGE;
  const show = () => {
    const status = $("status").value;
    const wanted = $("text").value.trim().toLowerCase();
    cards.sort(orders[$("sort").value]);
    let matches = 0;
    for (const card of cards) {
      const { name, reason } = card.dataset;
      const fits = (!status || card.dataset.status === status) && `${name} ${reason}`.toLowerCase().includes(wanted);
      matches += fits ? 1 : 0;
      card.hidden = !fits || matches > room;
    }
    list.append(...cards);
    const seen = Math.min(matches, room);
    $("count").value = seen < matches ? `${seen} of ${matches} photos` : `${matches} photo${matches === 1 ? "" : "s"}`;
    $("more").hidden = seen === matches;
    $("none").hidden = matches > 0;
  };
  for (const id of ["sort", "status", "text"]) {
    $(id).addEventListener("input", () => {
      room = PAGE;
      show();
    });
  }
  document.querySelector(".tools").addEventListener("submit", (event) => event.preventDefault());
  $("more").addEventListener("click", () => {
    const first = cards.filter((card) => !card.hidden).length;
    room += PAGE;
    show();
    const next = cards.filter((card) => !card.hidden)[first];
    next?.querySelector("input, button")?.focus(); // the keyboard goes on where the new cards begin
  });
  show();
})();
