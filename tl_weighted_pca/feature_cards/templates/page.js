"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const one = (selector) => document.querySelector(selector);
  const cards = () => all("#cards > article");
  const open = (card) => { card.querySelector("details").open = true; };
  const number = (text) => text.replace(/-/g, "\u2212");

  // Every token of a context becomes an element with its value, once the card is open.
  const split = (line) => {
    const at = before(line);
    const [lead, values] = line.dataset.t.split("|");
    const text = line.textContent;
    const classes = shades(line);
    let start = Number(lead);
    const parts = [text.slice(0, start)];
    for (const pair of values.split(",")) {
      const [length, z] = pair.split(":");
      const end = start + Number(length);
      let token = text.slice(start, end);
      if (token.startsWith(" ")) { parts.push(" "); token = token.slice(1); start += 1; }
      const element = document.createElement(start === at ? "mark" : "i");
      element.textContent = token;
      if (z) element.dataset.z = number(z);
      if (classes.has(start)) element.className = classes.get(start);
      parts.push(element);
      start = end;
    }
    line.replaceChildren(...parts);
    delete line.dataset.t;
  };
  // Where in the text of a line its framed token, and its tinted ones, begin.
  const before = (line) => {
    let at = 0;
    for (const node of line.childNodes) {
      if (node.nodeName === "MARK") return at;
      at += node.textContent.length;
    }
    return -1;
  };
  const shades = (line) => {
    const found = new Map();
    let at = 0;
    for (const node of line.childNodes) {
      if (node.className) found.set(at, node.className);
      at += node.textContent.length;
    }
    return found;
  };
  const splitOpen = () => {
    for (const line of all("[data-t]")) if (line.checkVisibility()) split(line);
  };
  for (const details of all("details")) details.addEventListener("toggle", () => details.open && splitOpen());
  splitOpen();

  // The value of the token that the pointer is on.
  const tip = document.createElement("div");
  tip.id = "tip";
  tip.hidden = true;
  document.body.append(tip);
  addEventListener("pointerover", (event) => {
    const token = event.target.closest?.("[data-z]");
    tip.hidden = !token;
    if (!token) return;
    const deviation = Number(token.closest(".card").dataset.sd);
    const z = Number(token.dataset.z.replace("\u2212", "-"));
    const times = deviation > 0 ? ` (${number((z / deviation).toFixed(1))}σ)` : "";
    tip.textContent = `z = ${token.dataset.z}${times}`;
    const box = token.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(box.left, innerWidth - tip.offsetWidth - 4))}px`;
    tip.style.top = `${Math.max(4, box.top - tip.offsetHeight - 4)}px`;
  });
  addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });

  const tools = one("#tools");
  if (tools) tools.hidden = false;
  for (const id of ["logs", "values"]) {
    one(`#${id}`)?.addEventListener("change", (event) => document.body.classList.toggle(id, event.target.checked));
  }

  // From card to card.
  const shown = () => cards().filter((card) => !card.hidden);
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
    card.querySelector("summary").focus({ preventScroll: true });
  };
  const steps = { j: 1, ArrowRight: 1, k: -1, ArrowLeft: -1 };
  addEventListener("keydown", (event) => {
    const typing = event.target.closest("input, select, [tabindex='0']");
    // Whoever dictates types letters anywhere: they are keys only while a card has the focus.
    const stray = event.key.length === 1 && !event.target.closest("article");
    if (typing || stray || event.altKey || event.ctrlKey || event.metaKey || !(event.key in steps)) return;
    event.preventDefault();
    go(steps[event.key]);
  });
  const follow = () => {
    const card = location.hash && cards().find((each) => `#${each.id}` === location.hash);
    if (card) { open(card); card.scrollIntoView(); }
  };
  addEventListener("hashchange", follow);
  addEventListener("click", (event) => {
    // A link to the card that the address already names changes no address.
    const link = event.target.closest("a[href^='#']");
    if (link && link.hash === location.hash) follow();
  });
  follow();

  const button = one("#all");
  button?.addEventListener("click", () => {
    const opened = shown().some((card) => !card.querySelector("details").open);
    for (const card of shown()) card.querySelector("details").open = opened;
    button.textContent = opened ? "Close all" : "Open all";
  });
  addEventListener("beforeprint", () => { for (const card of shown()) open(card); });

  // Search among tokens; a space is that before a word.
  const rows = all("tr[data-words]");
  const search = one("#search");
  search?.addEventListener("input", () => {
    const wanted = search.value.toLowerCase().replace(/ /g, "\u2423");
    let count = 0;
    for (const row of rows) {
      const hidden = !row.dataset.words.includes(wanted);
      count += !hidden;
      for (const each of all(`tr[data-card="${row.dataset.card}"], article#${row.dataset.card}`)) each.hidden = hidden;
    }
    one("#count").textContent = wanted ? `${count} of ${rows.length}` : "";
  });

  // Tables that sort, and the cards with the first of them.
  for (const table of all("table.sortable")) {
    const heads = all("thead th", table);
    const body = table.tBodies[0];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const numeric = body.rows[0].cells[column].hasAttribute("data-v");
        // Numbers begin with the largest, but for the components' own; a second click turns round.
        const first = numeric && column ? "descending" : "ascending";
        const other = first === "ascending" ? "descending" : "ascending";
        const order = head.getAttribute("aria-sort") === first ? other : first;
        for (const each of heads) each.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", order);
        const value = (row) => {
          const cell = row.cells[column];
          return numeric ? Number(cell.dataset.v ?? -Infinity) : cell.textContent.toLowerCase();
        };
        const compare = (a, b) => (numeric ? a - b : a.localeCompare(b));
        const sign = order === "ascending" ? 1 : -1;
        const sorted = [...body.rows].sort((a, b) => sign * compare(value(a), value(b)));
        body.append(...sorted);
        const list = one("#cards");
        if (list) list.append(...sorted.map((row) => document.getElementById(row.dataset.card)));
      });
    });
  }

  // One prompt at a time.
  const prompts = all(".prompt");
  const choice = one("#choice");
  if (choice && prompts.length > 1) {
    const select = choice.querySelector("select");
    const show = () => prompts.forEach((each, i) => { each.hidden = i !== Number(select.value); });
    choice.hidden = false;
    select.addEventListener("change", show);
    show();
  }
})();
