"use strict";
(() => {
  const PAGE = 24; // identities added at a time, and PHOTOS of one: a phone lays out no more in one go
  const PHOTOS = 12;
  const FOUND = 3; // so few identities found are opened
  const $ = (id) => document.getElementById(id);
  const list = $("people");
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
  const lower = (...texts) => texts.join(" ").toLowerCase();
  const people = [...list.children].map((box) => {
    const { name, status, reason, ...figures } = box.dataset;
    const cards = [...box.querySelectorAll(".card")].map((card) => {
      return { card, status: card.dataset.status, text: lower(card.dataset.name, card.dataset.reason) };
    });
    const person = { box, name, status, cards, text: lower(name, reason), limit: PHOTOS, matches: cards };
    for (const [key, value] of Object.entries(figures)) person[key] = number(value);
    person.more = box.querySelector(".more button");
    person.more.addEventListener("click", () => {
      const first = person.limit;
      person.limit += PHOTOS;
      lay(person);
      person.matches[first].card.querySelector("input, button")?.focus(); // the keyboard goes on where the new begin
    });
    return person;
  });
  const lay = (person) => {
    const seen = new Set(person.matches.slice(0, person.limit));
    for (const entry of person.cards) entry.card.hidden = !seen.has(entry);
    person.more.hidden = seen.size === person.matches.length;
  };
  const by = (field, sign) => (a, b) => {
    const [x, y] = [a[field], b[field]];
    if (x === null || y === null) return (x === null ? 1 : 0) - (y === null ? 1 : 0); // no figure: last
    return sign * (x - y);
  };
  const names = new Intl.Collator("en", { numeric: true });
  const orders = {
    worst: by("worst", -1),
    held: by("held", -1),
    psnr: by("psnr", 1),
    seen: by("seen", 1),
    slow: by("slow", -1),
    lost: by("lost", -1),
    name: (a, b) => names.compare(a.name, b.name),
  };
  const count = (n, one, many) => `${n} ${n === 1 ? one : many}`;
  let limit = PAGE;
  let seen = [];
  const show = () => {
    const status = $("status").value;
    const wanted = $("text").value.trim().toLowerCase();
    people.sort(orders[$("sort").value]);
    const matches = people.filter((person) => {
      const named = person.text.includes(wanted);
      const whole = !status || person.status === status;
      person.matches = person.cards.filter((c) => (named || c.text.includes(wanted)) && (whole || c.status === status));
      return (named && whole) || person.matches.length > 0;
    });
    for (const person of people) person.box.hidden = true;
    seen = matches.slice(0, limit);
    for (const person of seen) {
      lay(person);
      person.box.hidden = false;
      if (wanted && matches.length <= FOUND) person.box.open = true;
    }
    list.append(...seen.map((person) => person.box)); // in order; the hidden stay: moving thousands takes seconds
    const photos = matches.reduce((sum, person) => sum + person.matches.length, 0);
    const all = `${count(matches.length, "identity", "identities")}, ${count(photos, "photo", "photos")}`;
    $("count").value = seen.length < matches.length ? `${seen.length} of ${all}` : all;
    $("more").hidden = seen.length === matches.length;
    $("none").hidden = matches.length > 0;
  };
  for (const [id, event] of [["sort", "change"], ["status", "change"], ["text", "input"]]) {
    $(id).addEventListener(event, () => {
      limit = PAGE;
      for (const person of people) person.limit = PHOTOS;
      show();
    });
  }
  document.querySelector(".tools").addEventListener("submit", (event) => event.preventDefault());
  $("all").addEventListener("click", ({ currentTarget: button }) => {
    const open = button.getAttribute("aria-pressed") === "false";
    button.setAttribute("aria-pressed", String(open));
    button.textContent = open ? "Close all" : "Open all";
    for (const person of seen) person.box.open = open;
  });
  $("more").addEventListener("click", () => {
    const first = seen.length;
    limit += PAGE;
    show();
    seen[first].box.querySelector("summary").focus(); // the keyboard goes on where the new ones begin
  });
  show();
})();
