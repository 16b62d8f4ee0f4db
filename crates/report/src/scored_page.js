"use strict";
(() => {
  const by = (id) => document.getElementById(id);
  const list = by("rows");
  const rows = [...list.children];
  const texts = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
  // A reward that does not apply to a row has no score there.
  const score = (row, key) => (key in row.dataset ? Number(row.dataset[key]) : NaN);

  function fits(row, key, low, high, text, tag) {
    if (tag !== "" && !(row.dataset.tags ?? "").split(" ").includes(tag)) return false;
    const value = score(row, key);
    const bounded = !Number.isNaN(low) || !Number.isNaN(high);
    if (bounded && (Number.isNaN(value) || value < low || value > high)) return false;
    return texts.get(row).includes(text);
  }

  function compare(a, b, key, order) {
    const before = Number(a.dataset.index) - Number(b.dataset.index);
    if (order === "file") return before;
    const [x, y] = [score(a, key), score(b, key)];
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y) || before;
    return (order === "rising" ? x - y : y - x) || before;
  }

  function show() {
    const [key, order] = [by("key").value, by("order").value];
    const [low, high] = [parseFloat(by("low").value), parseFloat(by("high").value)];
    const text = by("text").value.toLowerCase();
    const tag = by("tag")?.value ?? "";
    let shown = 0;
    for (const row of rows) {
      row.hidden = !fits(row, key, low, high, text, tag);
      shown += row.hidden ? 0 : 1;
    }
    list.append(...[...rows].sort((a, b) => compare(a, b, key, order)));
    by("count").textContent = `${shown} of ${rows.length} rows`;
  }

  const form = by("controls");
  form.addEventListener("input", show);
  form.addEventListener("reset", () => setTimeout(show));
  form.addEventListener("submit", (event) => event.preventDefault());
  // A browser may have kept what was entered before a reload.
  show();
})();
