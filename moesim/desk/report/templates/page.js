// Column headings of the tables become buttons that sort; without scripts the tables are simply not sortable.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => row.cells[column].dataset.key ?? row.cells[column].textContent;
      const compare = (a, b) => {
        const [x, y] = [key(a), key(b)];
        if (!x || !y) return !x - !y; // what has no value comes last, whichever way
        const order = isNaN(x) || isNaN(y) ? x.localeCompare(y, "en", { numeric: true }) : Number(x) - Number(y);
        return down ? -order : order;
      };
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
    });
  });
}
// Printed pages show what is folded on the screen.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => { part.dataset.was = part.open; part.open = true; }));
addEventListener("afterprint", () => document.querySelectorAll("details").forEach((part) => { part.open = part.dataset.was === "true"; }));
// A heat map says the value of the cell under the pointer or the finger; other marks have titles, which browsers show by themselves.
const tip = document.createElement("p");
tip.className = "tip";
tip.hidden = true;
document.body.append(tip);
for (const cover of document.querySelectorAll(".cells")) {
  const { row, rows, column, columns, texts } = JSON.parse(cover.dataset.cells);
  const say = (event) => {
    const box = cover.getBoundingClientRect();
    const at = (share, count) => Math.max(0, Math.min(count - 1, Math.floor(share * count)));
    const r = at((event.clientY - box.top) / box.height, rows.length);
    const c = at((event.clientX - box.left) / box.width, columns.length);
    tip.textContent = `${row} ${rows[r]}, ${column} ${columns[c]}: ${texts[r][c]}`;
    tip.hidden = false;
    tip.style.left = `${Math.max(4, Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 4))}px`;
    tip.style.top = `${Math.max(4, event.clientY - tip.offsetHeight - 10)}px`;
  };
  cover.addEventListener("pointermove", say);
  cover.addEventListener("pointerdown", say);
  cover.addEventListener("pointerleave", () => { tip.hidden = true; });
}
