"use strict";
// The grid: one stop of the Tab key, arrow keys within, and a line that says what the square is.
(() => {
  const table = document.getElementById("heads"), readout = document.getElementById("heads-readout");
  if (!table) return;
  const rows = Array.from(table.tBodies[0].rows, row => Array.from(row.querySelectorAll("td")));
  const say = cell => { readout.textContent = cell.querySelector(".sr").textContent; };
  let now = (table.querySelector("td.kept") || rows[0][0]);
  now.tabIndex = 0;
  const go = cell => { now.tabIndex = -1; now = cell; now.tabIndex = 0; now.focus(); };
  table.addEventListener("pointerover", event => { const cell = event.target.closest("td"); if (cell) say(cell); });
  table.addEventListener("click", event => { const cell = event.target.closest("td"); if (cell) go(cell); });
  table.addEventListener("focusin", event => { const cell = event.target.closest("td"); if (cell) say(cell); });
  table.addEventListener("keydown", event => {
    const row = rows.findIndex(cells => cells.includes(now)), column = rows[row].indexOf(now);
    const last = rows[row].length - 1;
    const to = { ArrowLeft: [row, column - 1], ArrowRight: [row, column + 1], ArrowUp: [row - 1, column],
      ArrowDown: [row + 1, column], Home: [row, 0], End: [row, last] }[event.key];
    if (!to) return;
    event.preventDefault();
    const cell = rows[to[0]] && rows[to[0]][to[1]];
    if (cell) go(cell);
  });
})();
// Attention: the token that is chosen looks back.
(() => {
  const table = document.getElementById("patterns"), name = document.getElementById("query-name");
  if (!table) return;
  const scale = table.dataset.scale, buttons = Array.from(table.querySelectorAll("button"));
  const show = button => {
    const at = Number(button.dataset.at);
    buttons.forEach(other => other.setAttribute("aria-pressed", String(other === button)));
    name.replaceChildren(...button.firstElementChild.cloneNode(true).childNodes);
    for (const row of table.tBodies[0].rows) {
      const weights = row.dataset.rows.split(" ")[at];
      row.querySelectorAll("td").forEach((cell, index) => {
        const level = index < weights.length ? scale.indexOf(weights[index]) : 0;
        const percent = Math.round(100 * level / (scale.length - 1));
        cell.textContent = percent || "";
        cell.style.setProperty("--w", percent);
      });
    }
  };
  buttons.forEach(button => button.addEventListener("click", () => show(button)));
})();
