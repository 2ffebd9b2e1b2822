"use strict";
// What one reads: claims with their verdicts, tables, definitions, config, provenance, versions, what was left out.
(function (C) {
  const SIGNS = { supported: "✔", contradicted: "✘", undecided: "?" };

  C.drawReport = function (place) {
    const { index } = C.data;
    const run = C.run();
    C.once(place, JSON.stringify([C.state().run, C.generation]), () => {
      const parts = [];
      const section = (title, ...children) => parts.push(C.el("section", {}, C.el("h2", {}, title), ...children));
      if (index.summary && index.summary.length) section("What happened", C.el("ul", {}, index.summary.map((line) => C.el("li", {}, line))));
      const decided = (index.claims || []).filter((found) => found.verdict !== "undecided");
      const undecided = (index.claims || []).filter((found) => found.verdict === "undecided");
      if (decided.length) section("The paper's claims, tested on these runs", C.el("div", { class: "claims" }, decided.map(claim)));
      for (const [name, table] of Object.entries(run.tables || {})) {
        const holder = C.el("div", {});
        const words = table.rows.some((row) => row.some((v) => typeof v === "string" && v.length > 60));
        const tidy = table.tidy && (() => ({ columns: ["run", ...table.tidy.columns], rows: table.tidy.rows.map((row) => [run.name, ...row]) }));
        C.table(holder, { ...table, tidy, title: "", name, words, digits: { "× uniform": 1 } });
        section(table.title || name, holder);
      }
      if (undecided.length) {
        const cards = C.el("div", { class: "claims" }, undecided.map(claim));
        section("Undecided claims", C.el("details", {}, C.el("summary", {}, `${undecided.length} of ${index.claims.length} claims cannot be decided from these runs`), cards));
      }
      if (index.left_out && index.left_out.length) section("Left out of this page", C.el("ul", {}, index.left_out.map((line) => C.el("li", {}, line))));
      section("Provenance", facts(run.provenance));
      section("Config", run.config ? C.el("pre", { tabindex: "0", "aria-label": "Config" }, run.config) : C.el("p", {}, "Not given."));
      section("Made with", facts(index.made));
      C.fill(place, parts);
    });
  };

  function facts(pairs) {
    const entries = Object.entries(pairs || {});
    if (!entries.length) return C.el("p", {}, "Not given.");
    return C.el("dl", { class: "facts" }, entries.map(([key, value]) => C.el("div", {}, C.el("dt", {}, key), C.el("dd", {}, value === null ? "–" : String(value)))));
  }

  function details(found) {
    const holder = C.el("div", {});
    C.table(holder, { ...found.details, title: found.details.title || found.claim, name: "claim", exact: true });
    return C.el("details", {}, C.el("summary", {}, "Details"), holder);
  }

  function claim(found) {
    const verdict = found.verdict || "undecided";
    const small = (name, value) => (value ? C.el("div", {}, C.el("dt", {}, name), C.el("dd", {}, typeof value === "number" ? C.precise(value) : Array.isArray(value) ? value.map((v) => C.precise(v)).join(" to ") : String(value))) : null);
    return C.el(
      "article",
      { class: "claim " + (SIGNS[verdict] ? verdict : "undecided") },
      C.el("p", { class: "verdict" }, `${SIGNS[verdict] || "?"} ${verdict}`),
      C.el("h3", {}, found.claim),
      found.text ? C.el("p", {}, found.text) : null,
      C.el("dl", { class: "facts" }, small("effect", found.effect), small("interval", found.interval), small("runs", found.runs), small("rule", found.rule), small("would be contradicted by", found.break_condition)),
      found.details ? details(found) : null
    );
  }
})(Copyscope);
