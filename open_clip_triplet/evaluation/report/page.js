// A click on a column's heading sorts the rows of each section by it: falling, rising, as they were.
"use strict";
for (const heading of document.querySelectorAll("th.sortable")) {
  const sort = () => {
    const table = heading.closest("table");
    const column = [...heading.parentNode.children].indexOf(heading);
    const next = {none: "descending", descending: "ascending", ascending: "none"}[heading.ariaSort || "none"];
    for (const other of table.querySelectorAll("th.sortable")) other.ariaSort = "none";
    heading.ariaSort = next;
    const value = (row) => {
      const number = parseFloat(row.cells[column].firstChild?.textContent.replace(/[,<\s]/g, ""));
      return Number.isNaN(number) ? -Infinity : number;
    };
    for (const body of table.tBodies) {
      const rows = [...body.rows].filter((row) => !row.classList.contains("group"));
      rows.forEach((row, i) => { row.dataset.place ??= i; });
      const sign = next === "ascending" ? 1 : -1;
      rows.sort((a, b) => next === "none" ? a.dataset.place - b.dataset.place
        : sign * (value(a) - value(b)) || a.dataset.place - b.dataset.place);
      body.append(...rows);
    }
  };
  heading.addEventListener("click", sort);
  heading.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(); });
}
