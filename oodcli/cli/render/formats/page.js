"use strict";
// Marks of buttons and of what scrolls are for pages whose scripts run.
document.documentElement.classList.add("scripts");
// A heading sorts its column: best first where it says what is best, else upwards; then the other
// way; then as the table came.
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  const original = Array.from(body.rows);
  const headings = Array.from(table.tHead.rows[table.tHead.rows.length - 1].cells);
  const said = table.closest("section").querySelector("[aria-live]");
  headings.forEach((heading, column) => {
    const button = heading.querySelector("button");
    if (!button) return;
    const orders = ["none", "ascending", "descending"];
    if (button.textContent.includes("\u2191")) orders.splice(1, 2, "descending", "ascending");
    button.addEventListener("click", () => {
      const order = orders[(orders.indexOf(heading.getAttribute("aria-sort")) + 1) % 3];
      headings.forEach((h) => h.hasAttribute("aria-sort") && h.setAttribute("aria-sort", "none"));
      heading.setAttribute("aria-sort", order);
      table.classList.toggle("sorted", order !== "none");
      const rows = order === "none" ? original : sorted(original, column, order === "ascending");
      // Rows are moved while the table is not drawn.
      body.remove();
      body.replaceChildren(...rows);
      table.tHead.after(body);
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
  const names = new Intl.Collator("en", { numeric: true });
  const compared = ([x], [y]) => {
    // What has no value stays at the end, whichever way the others go.
    if (x === null || y === null) return (x === null) - (y === null);
    return sign * (numeric ? x - y : names.compare(x, y));
  };
  const keyed = rows.map((row) => [key(row), row]);
  return keyed.sort(compared).map(([, row]) => row);
}

// A region that goes on to the right fades there.
function watchScroll(region) {
  const mark = () => {
    const rest = region.scrollWidth - region.clientWidth - region.scrollLeft;
    region.classList.toggle("cut", rest > 1);
  };
  region.addEventListener("scroll", mark, { passive: true });
  const observer = new ResizeObserver(mark);
  observer.observe(region);
  for (const table of region.querySelectorAll("table")) observer.observe(table);
  new MutationObserver(mark).observe(region, { childList: true });
}
for (const region of document.querySelectorAll(".scroll")) watchScroll(region);

// Pictures are printed, although their section is closed at first and decodes none.
window.addEventListener("beforeprint", () => {
  for (const terms of document.querySelectorAll("details.terms")) terms.open = true;
  for (const section of document.querySelectorAll("details.pictures")) {
    section.open = true;
    for (const image of section.querySelectorAll("img")) image.loading = "eager";
  }
});
