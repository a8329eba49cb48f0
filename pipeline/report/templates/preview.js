"use strict";
(() => {
  const STEP = 1.25; // factor of one zoom step
  const MOST = 8; // largest zoom, screen pixels a picture pixel
  const NEAR = 20; // px around the line in which a drag moves the line, not the picture
  const MOVE = 60; // px that an arrow key moves the picture
  const $ = (id) => document.getElementById(id);
  const [stage, before, after, handle, range] = ["stage", "before", "after", "handle", "cut"].map($);
  const choices = [...document.querySelectorAll("button.choice")];
  const zooms = [...document.querySelectorAll("[data-zoom]")];
  let view = "whole";
  let chosen = choices.find((button) => button.getAttribute("aria-pressed") === "true");
  let scale = 1; // px of the page a picture pixel
  let [x, y] = [0, 0]; // the picture's upper left corner in the stage, px
  let fitted = true;

  const unit = () => 1 / window.devicePixelRatio; // scale of 100 %
  const stageSize = () => [stage.clientWidth, stage.clientHeight];
  const length = () => [before.naturalWidth * scale, before.naturalHeight * scale];
  const fit = () => Math.min(stage.clientWidth / before.naturalWidth, stage.clientHeight / before.naturalHeight);
  const largest = () => Math.max(MOST * unit(), fit());
  const smallest = () => Math.min(unit(), fit());
  const movable = () => length().some((size, axis) => size > stageSize()[axis] + 1);

  // The line runs over the visible part of the picture: px in the stage
  const visible = () => [Math.max(0, x), Math.min(stage.clientWidth, x + length()[0])];
  const line = () => {
    const [left, right] = visible();
    return left + ((right - left) * range.value) / 100;
  };
  const cut = () => {
    const hidden = before.naturalWidth - (line() - x) / scale;
    before.style.clipPath = `inset(0 ${Math.max(0, hidden)}px 0 0)`;
    stage.style.setProperty("--at", `${line()}px`);
    range.setAttribute("aria-valuetext", `${range.value} % original`);
  };
  const place = () => {
    if (!before.naturalWidth) return;
    const within = (at, all, size) => Math.round(size <= all ? (all - size) / 2 : Math.min(0, Math.max(all - size, at)));
    const [[width, height], [wide, high]] = [length(), stageSize()];
    [x, y] = [within(x, wide, width), within(y, high, height)];
    for (const image of [before, after]) {
      image.style.transform = `translate(${x}px, ${y}px) scale(${scale})`;
      image.style.imageRendering = scale >= 2 * unit() ? "pixelated" : "auto";
    }
    stage.classList.toggle("movable", movable());
    const percent = Math.round((100 * scale) / unit());
    $("zoomed").value = `${percent} %`;
    for (const button of zooms) {
      const wanted = button.dataset.zoom;
      if (wanted === "in" || wanted === "out") continue;
      const on = wanted === "fit" ? fitted : !fitted && percent === 100 * Number(wanted);
      button.setAttribute("aria-pressed", String(on));
    }
    cut();
  };
  const zoom = (to, atX = stage.clientWidth / 2, atY = stage.clientHeight / 2) => {
    const wanted = Math.min(largest(), Math.max(smallest(), to));
    [x, y] = [atX - ((atX - x) * wanted) / scale, atY - ((atY - y) * wanted) / scale];
    scale = wanted;
    fitted = false;
    place();
  };
  const whole = () => {
    scale = fit();
    fitted = true;
    place();
  };
  const asked = (wanted) => {
    if (wanted === "fit") whole();
    else if (wanted === "in") zoom(scale * STEP);
    else if (wanted === "out") zoom(scale / STEP);
    else zoom(Number(wanted) * unit());
  };

  const show = () => {
    const name = chosen.querySelector("b").textContent;
    const source = chosen.querySelector(`img.${view}`);
    after.src = source.src;
    after.alt = source.alt;
    $("shown").textContent = name;
    $("shown-too").textContent = name;
    for (const button of choices) button.setAttribute("aria-pressed", String(button === chosen));
    for (const cell of document.querySelectorAll(".scores [data-strength]")) {
      cell.classList.toggle("chosen", cell.dataset.strength === chosen.dataset.strength);
    }
  };
  const original = () => {
    const source = $("original").querySelector(`img.${view}`);
    before.src = source.src;
    before.alt = source.alt;
  };

  for (const button of choices) {
    button.addEventListener("click", () => {
      chosen = button;
      show();
    });
  }
  for (const button of zooms) button.addEventListener("click", () => asked(button.dataset.zoom));
  $("view")?.addEventListener("change", ({ currentTarget }) => {
    view = currentTarget.value;
    original();
    show();
  });
  before.addEventListener("load", whole);
  range.addEventListener("input", cut);
  new ResizeObserver(() => {
    if (before.naturalWidth) (fitted ? whole : place)();
  }).observe(stage);

  stage.addEventListener(
    "wheel",
    (event) => {
      const wanted = event.deltaY < 0 ? scale * STEP : scale / STEP;
      const spent = event.deltaY < 0 ? scale >= largest() : scale <= Math.min(fit(), unit()) || fitted;
      if (spent || !event.deltaY) return; // the page scrolls
      event.preventDefault();
      const box = stage.getBoundingClientRect();
      if (event.deltaY > 0 && wanted <= fit()) whole();
      else zoom(wanted, event.clientX - box.left, event.clientY - box.top);
    },
    { passive: false },
  );
  let drag = null;
  const inStage = (event) => event.clientX - stage.getBoundingClientRect().left;
  const moveLine = (event) => {
    const [left, right] = visible();
    range.value = (100 * (inStage(event) - left)) / (right - left);
    cut();
  };
  stage.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    const onLine = !movable() || Math.abs(inStage(event) - line()) < NEAR;
    drag = { onLine, x: event.clientX - x, y: event.clientY - y };
    stage.setPointerCapture(event.pointerId);
    if (onLine) moveLine(event);
    else stage.classList.add("moving");
  });
  stage.addEventListener("pointermove", (event) => {
    if (!drag) return;
    if (drag.onLine) {
      moveLine(event);
      return;
    }
    [x, y] = [event.clientX - drag.x, event.clientY - drag.y];
    place();
  });
  for (const end of ["pointerup", "pointercancel"]) {
    stage.addEventListener(end, () => {
      drag = null;
      stage.classList.remove("moving");
    });
  }
  const keys = { "+": "in", "=": "in", "-": "out", 0: "fit", 1: "1", 2: "2" };
  const arrows = { ArrowLeft: [MOVE, 0], ArrowRight: [-MOVE, 0], ArrowUp: [0, MOVE], ArrowDown: [0, -MOVE] };
  stage.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return; // the browser's own zoom
    if (event.key in keys) asked(keys[event.key]);
    else if (event.key in arrows && movable()) {
      const [across, down] = arrows[event.key];
      [x, y] = [x + across, y + down];
      place();
    } else return;
    event.preventDefault();
  });
  original();
  show();
})();
