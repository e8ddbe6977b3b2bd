// The rows of a plan: a table stays where it was scrolled to while its numbers change. Rows with a step can be picked by
// pointing at them, by clicking, which holds them until the pointer comes anew, and by the arrow keys.
const rows = () => [...element.querySelectorAll("tr[data-step]")];
const place = { left: 0, top: 0 };
let held = false;
let waiting = null;

const mark = (row) => {
  for (const each of rows()) {
    each.setAttribute("aria-selected", String(each === row));
    each.tabIndex = each === row ? 0 : -1;
  }
};
const pick = (row) => {
  if (!row || row.getAttribute("aria-selected") === "true") return;
  mark(row);
  trigger("select", { step: Number(row.dataset.step) });
};
const rowOf = (event) => (event.target instanceof Element ? event.target.closest("tr[data-step]") : null);

element.addEventListener(
  "scroll",
  (event) => Object.assign(place, { left: event.target.scrollLeft, top: event.target.scrollTop }),
  true,
);
watch("value", () => {
  const table = element.querySelector(".rows");
  if (table) table.scrollTo(place.left, place.top);
});
element.addEventListener("pointerover", (event) => {
  clearTimeout(waiting);
  const row = rowOf(event);
  if (row && event.pointerType === "mouse" && !held) waiting = setTimeout(() => pick(row), 60);
});
element.addEventListener("pointerleave", () => {
  clearTimeout(waiting);
  held = false;
});
element.addEventListener("click", (event) => {
  const row = rowOf(event);
  if (!row) return;
  held = true;
  pick(row);
  row.focus({ preventScroll: true });
});
element.addEventListener("keydown", (event) => {
  const all = rows();
  const at = all.indexOf(rowOf(event));
  const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: all.length - 1 }[event.key];
  if (at < 0 || to === undefined) return;
  event.preventDefault();
  const row = all[Math.min(Math.max(to, 0), all.length - 1)];
  pick(row);
  row.focus();
});
