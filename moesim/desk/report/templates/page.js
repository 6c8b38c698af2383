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
// Marks and cells say their values: under the pointer, under a finger, and by arrow keys in a figure that has the focus.
const tip = document.createElement("p");
tip.className = "tip";
tip.hidden = true;
tip.setAttribute("role", "status");
const frame = document.createElement("div");
frame.className = "frame";
frame.hidden = true;
document.body.append(frame, tip);
let held = null; // the element whose value a tap or a key has put there; it stays until something else is asked for
const hide = () => { tip.hidden = frame.hidden = true; held = null; };
const show = (text, x, y) => {
  if (tip.textContent !== text) tip.textContent = text;
  tip.hidden = false;
  tip.style.left = `${Math.max(4, Math.min(x + 12, innerWidth - tip.offsetWidth - 4))}px`;
  tip.style.top = `${y - tip.offsetHeight - 10 < 4 ? y + 24 : y - tip.offsetHeight - 10}px`;
};
const around = (box) => {
  Object.assign(frame.style, { left: `${box.left - 2}px`, top: `${box.top - 2}px`, width: `${box.width + 4}px`, height: `${box.height + 4}px` });
  frame.hidden = false;
};
const maps = new Map();
const read = (cover) => {
  if (!maps.has(cover)) maps.set(cover, JSON.parse(cover.dataset.cells));
  return maps.get(cover);
};
const cellText = ({ row, rows, column, columns, texts }, r, c) => `${row} ${rows[r]}, ${column} ${columns[c]}: ${texts[r][c]}`;
const cellBox = (cover, r, c) => {
  const { rows, columns } = read(cover), box = cover.getBoundingClientRect();
  const width = box.width / columns.length, height = box.height / rows.length;
  return { left: box.left + c * width, top: box.top + r * height, width, height };
};
for (const cover of document.querySelectorAll(".cells")) {
  const say = (event) => {
    const map = read(cover), box = cover.getBoundingClientRect();
    const at = (share, count) => Math.max(0, Math.min(count - 1, Math.floor(share * count)));
    const r = at((event.clientY - box.top) / box.height, map.rows.length);
    const c = at((event.clientX - box.left) / box.width, map.columns.length);
    frame.hidden = true;
    held = event.pointerType === "touch" ? cover : null;
    if (held) around(cellBox(cover, r, c));
    show(cellText(map, r, c), event.clientX, event.clientY);
  };
  cover.addEventListener("pointermove", say);
  cover.addEventListener("pointerdown", say);
  cover.addEventListener("pointerleave", () => { if (!held) hide(); });
}
// Browsers show the title of a mark to a mouse; a finger gets the same text.
for (const mark of document.querySelectorAll(".hover")) {
  mark.addEventListener("pointerdown", (event) => {
    if (event.pointerType !== "touch") return;
    held = mark;
    around(mark.getBoundingClientRect());
    show(mark.querySelector("title").textContent, event.clientX, event.clientY);
  });
}
addEventListener("pointerdown", (event) => { if (held && !event.target.closest(".hover, .cells")) hide(); });
addEventListener("scroll", () => { if (held) hide(); }, { passive: true, capture: true });
for (const figure of document.querySelectorAll("figure .scroll")) {
  const stops = [...figure.querySelectorAll(".hover, .cells")];
  if (!stops.length) continue;
  let stop = -1, r = 0, c = 0;
  const hint = document.createElement("p");
  hint.className = "keys";
  hint.textContent = "Arrow keys go from value to value, Escape ends.";
  figure.after(hint);
  const keys = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };
  const size = () => (stop >= 0 && stops[stop].dataset.cells ? read(stops[stop]) : null);
  const move = (key) => {
    const [down, right] = keys[key] ?? [0, 0], map = size();
    const edge = map && ((right && !(c + right in map.columns)) || (down && !(r + down in map.rows)));
    if (stop >= 0 && map && key in keys && !edge) { r += down; c += right; return; }
    if (map && key === "Home") { c = 0; return; }
    if (map && key === "End") { c = map.columns.length - 1; return; }
    if (map && down) return; // up and down stay in a map
    const to = key === "Home" ? 0 : key === "End" ? stops.length - 1 : stop + Math.sign(down + right);
    if (!(to in stops)) { if (stop < 0) stop = 0; return; }
    stop = to;
    const next = size();
    if (next) { r = Math.min(r, next.rows.length - 1); c = right < 0 ? next.columns.length - 1 : 0; }
  };
  figure.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { hide(); return; }
    if (event.altKey || event.ctrlKey || event.metaKey || event.target !== figure || !(event.key in keys || ["Home", "End"].includes(event.key))) return;
    event.preventDefault();
    move(event.key);
    const map = size(), mark = stops[stop];
    const place = () => (map ? cellBox(mark, r, c) : mark.getBoundingClientRect());
    const port = figure.getBoundingClientRect(), before = place();
    if (before.left < port.left) figure.scrollLeft -= port.left - before.left + 8;
    if (before.left + before.width > port.right) figure.scrollLeft += before.left + before.width - port.right + 8;
    const box = place();
    if (box.top < 0 || box.top + box.height > innerHeight) scrollBy({ top: box.top - innerHeight / 2, behavior: "instant" });
    const seen = place();
    held = null; // scrolling to it must not hide it
    around(seen);
    show(map ? cellText(map, r, c) : mark.querySelector("title").textContent, Math.max(seen.left, port.left), seen.top);
  });
  figure.addEventListener("blur", hide);
}
