// A card beside a link to an equation, a term or a reference shows what is there, to who points at
// the link or comes to it by the keyboard.  Texts: card_texts.js, which conf.py writes.
"use strict";
(() => {
  const root = new URL(document.documentElement.dataset.content_root, location.href).href;
  const textOf = (link) => link.href.startsWith(root) && DSS_CARDS[link.href.slice(root.length)];
  const card = Object.assign(document.createElement("div"), { id: "dss-card", hidden: true });
  card.setAttribute("role", "tooltip");
  let shown, timer;

  function place() { // below the link or above it, where there is room, and within the window
    const { innerWidth, innerHeight } = window, page = document.documentElement;
    card.style.left = card.style.top = "0";
    for (const block of card.querySelectorAll("div.math")) { // a wide equation gets smaller
      block.style.fontSize = "";
      const fits = block.clientWidth / block.scrollWidth;
      if (fits < 1) block.style.fontSize = `${Math.floor(98 * fits)}%`;
    }
    const [line] = shown.getClientRects(), { width, height } = card.getBoundingClientRect();
    const left = Math.max(8, Math.min(line.left, page.clientWidth - width - 8));
    const above = line.bottom + height + 8 > innerHeight && line.top > height + 8;
    card.style.left = `${left + scrollX}px`;
    card.style.top = `${(above ? line.top - height - 2 : line.bottom + 2) + scrollY}px`;
  }
  function hide() {
    clearTimeout(timer);
    card.hidden = true;
    shown?.removeAttribute("aria-describedby");
    shown = undefined;
  }
  function show(link) {
    hide();
    shown = link;
    card.innerHTML = textOf(link);
    card.hidden = false;
    if (card.querySelector("div.math")) // its glyphs are no text: the source is
      card.setAttribute("aria-label", card.textContent.trim());
    else card.removeAttribute("aria-label");
    link.setAttribute("aria-describedby", card.id);
    place();
    globalThis.MathJax?.typesetPromise?.([card]).then(() => shown === link && place());
  }
  const later = (act, ms) => { clearTimeout(timer); timer = setTimeout(act, ms); };
  const by_touch = (event) => event.pointerType !== "mouse"; // a tap goes where the link leads

  document.body.append(card);
  card.onpointerenter = () => clearTimeout(timer);
  card.onpointerleave = () => later(hide, 200);
  for (const link of document.querySelectorAll("article a[href*='#']:not(.headerlink)")) {
    if (!textOf(link)) continue;
    link.onpointerenter = (event) => by_touch(event) || later(() => show(link), 150);
    link.onpointerleave = (event) => by_touch(event) || later(hide, 200);
    link.onfocus = () => link.matches(":focus-visible") && show(link);
    link.onblur = hide;
  }
  addEventListener("keydown", (event) => event.key === "Escape" && hide());
})();
