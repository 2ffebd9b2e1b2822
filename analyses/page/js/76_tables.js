"use strict";
// Tables: real <table> elements for readers of every kind, sortable by column, each with its own downloads.
(function (C) {
  const isNumber = (value) => typeof value === "number";

  /** Draws {title, columns, rows, name, note, words, links, digits, exact, tidy} into `place`. links: row index -> function to call on Enter or
   * click of the first cell; digits: column -> decimals, where three say too much; exact: whether there are settings among the numbers, such as learning rates; tidy: a function that gives {columns, rows} for the downloads, a row a row. Draws again only when the content changed; the sorting by column stays. */
  C.table = function (place, found) {
    place.tidy = found.tidy || null; // also where nothing is drawn again: it may name another step
    C.once(place, JSON.stringify([found.title, found.columns, found.rows, found.pressed]), () => build(place, found));
  };

  function build(place, found) {
    const { title, columns, rows, name } = found;
    const numeric = columns.map((_, c) => rows.some((row) => isNumber(row[c])) && rows.every((row) => row[c] === null || isNumber(row[c])));
    const sorted = place.sorted && place.sorted.name === name ? place.sorted : (place.sorted = { name, column: null, down: true });
    const order = rows.map((_, i) => i);
    if (sorted.column !== null) {
      const c = sorted.column;
      const key = (i) => rows[i][c];
      order.sort((x, y) => {
        const [a, b] = [key(x), key(y)];
        if (a === b) return x - y;
        if (a === null || a === "") return 1;
        if (b === null || b === "") return -1;
        const up = numeric[c] ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true });
        return sorted.down ? -up : up;
      });
    }
    const head = columns.map((column, c) => {
      const state = sorted.column === c ? (sorted.down ? "descending" : "ascending") : "none";
      const sort = () => {
        if (sorted.column === c) sorted.down = !sorted.down;
        else Object.assign(sorted, { column: c, down: numeric[c] });
        build(place, found);
        place.querySelectorAll("th button")[c].focus();
      };
      const sign = state === "none" ? "" : sorted.down ? " ▼" : " ▲";
      return C.el("th", { scope: "col", class: numeric[c] ? "number" : null, "aria-sort": state }, column && rows.length > 1 ? C.el("button", { type: "button", onclick: sort }, column + sign) : column);
    });
    const isP = (column) => /^(.* )?p$/.test(column);
    const said = (value, column) => (found.exact && !isP(column) ? C.precise(value) : C.number(value, (found.digits || {})[column]));
    const body = order.map((i) =>
      C.el(
        "tr",
        { class: found.pressed && found.pressed.includes(i) ? "chosen" : null },
        rows[i].map((value, c) => {
          const text = isNumber(value) || value === null ? said(value, columns[c]) : String(value);
          const inner = c === 0 && found.links ? C.el("button", { type: "button", class: "link", onclick: () => found.links(i) }, text) : C.el("bdi", {}, text);
          return C.el(c === 0 ? "th" : "td", { scope: c === 0 ? "row" : null, class: numeric[c] ? "number" : null }, inner);
        })
      )
    );
    const whole = () => (place.tidy ? place.tidy() : { columns: columns.map((column, c) => column || (c ? "note" : "name")), rows });
    /** Saves once all that it asks for is here. */
    const save = (kind) => {
      whole(); // asks for what is not here yet
      C.data.whenHere(() => {
        const table = whole();
        C.saveTable(file, { columns: table.columns, rows: order.map((i) => table.rows[i]) }, kind);
      });
    };
    const file = (name || title || "table").toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "") || "table";
    C.fill(
      place,
      C.el(
        "div",
        { class: "scroll", tabindex: "0", role: "region", "aria-label": title || "Table" },
        C.el("table", { class: found.words ? "words" : null }, title ? C.el("caption", {}, title) : null, C.el("thead", {}, C.el("tr", {}, head)), C.el("tbody", {}, body))
      ),
      found.note ? C.el("p", { class: "note" }, found.note) : null,
      rows.length
        ? C.el("div", { class: "saves", role: "group", "aria-label": `Download: ${title || "table"}` }, C.el("button", { type: "button", onclick: () => save("csv") }, "CSV"), C.el("button", { type: "button", onclick: () => save("json") }, "JSON"))
        : C.el("p", { class: "note" }, "No rows.")
    );
  }
})(Copyscope);
