"use strict";
// A heading sorts its column: first upwards, then downwards, then as the table came.
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  const original = Array.from(body.rows);
  const headings = Array.from(table.tHead.rows[table.tHead.rows.length - 1].cells);
  const said = table.closest("section").querySelector("[aria-live]");
  const next = { none: "ascending", ascending: "descending", descending: "none" };
  headings.forEach((heading, column) => {
    const button = heading.querySelector("button");
    if (!button) return;
    button.addEventListener("click", () => {
      const order = next[heading.getAttribute("aria-sort")];
      headings.forEach((h) => h.hasAttribute("aria-sort") && h.setAttribute("aria-sort", "none"));
      heading.setAttribute("aria-sort", order);
      table.classList.toggle("sorted", order !== "none");
      const rows = order === "none" ? original : sorted(original, column, order === "ascending");
      body.append(...rows);
      said.textContent =
        order === "none" ? "original order" : `sorted by ${button.dataset.name}, ${order}`;
    });
  });
}

function sorted(rows, column, ascending) {
  const numeric = rows.some((row) => row.cells[column].hasAttribute("data-value"));
  const sign = ascending ? 1 : -1;
  const key = (row) => {
    const cell = row.cells[column];
    if (!numeric) return cell.firstChild ? cell.firstChild.textContent : "";
    return cell.hasAttribute("data-value") ? Number(cell.dataset.value) : null;
  };
  const compared = (a, b) => {
    const [x, y] = [key(a), key(b)];
    // What has no value stays at the end, whichever way the others go.
    if (x === null || y === null) return (x === null) - (y === null);
    return sign * (numeric ? x - y : x.localeCompare(y, "en", { numeric: true }));
  };
  return Array.from(rows).sort(compared);
}

// Pictures are printed, although their section is closed at first and decodes none.
window.addEventListener("beforeprint", () => {
  for (const section of document.querySelectorAll("details.pictures")) {
    section.open = true;
    for (const image of section.querySelectorAll("img")) image.loading = "eager";
  }
});
