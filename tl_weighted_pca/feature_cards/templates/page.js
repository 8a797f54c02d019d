"use strict";
(() => {
  const cards = [...document.querySelectorAll("article")];
  const shown = () => cards.filter((card) => !card.hidden);
  const go = (step) => {
    const list = shown();
    let at = list.findIndex((card) => card.contains(document.activeElement));
    if (at < 0) {
      // Nothing is in focus: go on from what is in sight.
      at = list.filter((card) => card.getBoundingClientRect().top < 1).length - 1;
    }
    const card = list[Math.max(0, Math.min(list.length - 1, at + step))];
    if (!card) return;
    card.scrollIntoView();
    card.querySelector("h2 a").focus({ preventScroll: true });
  };
  const steps = { j: 1, ArrowRight: 1, k: -1, ArrowLeft: -1 };
  addEventListener("keydown", (event) => {
    const typing = event.target.closest("input, [tabindex='0']");
    // Whoever dictates types letters anywhere: they are keys only while a card has the focus.
    const stray = event.key.length === 1 && !event.target.closest("article");
    if (typing || stray || event.altKey || event.ctrlKey || event.metaKey || !(event.key in steps)) return;
    event.preventDefault();
    go(steps[event.key]);
  });
  const filter = document.querySelector("#filter");
  const count = document.querySelector("#count");
  filter.hidden = false;
  filter.querySelector("input").addEventListener("input", (event) => {
    const wanted = event.target.value.trim().toLowerCase();
    for (const card of cards) {
      card.hidden = !card.textContent.toLowerCase().includes(wanted);
      document.querySelector(`#row-${card.id}`).hidden = card.hidden;
    }
    count.textContent = `${shown().length} of ${cards.length}`;
  });
})();
