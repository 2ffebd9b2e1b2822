"use strict";
// Downloads: tables as CSV or JSON, figures as SVG or PNG, a link, and the Python that makes the figure.
(function (C) {
  const boxed = window.parent !== window && window.origin === "null"; // a sandboxed frame may neither save nor copy

  /** Shows text to copy by hand; the way out where saving is forbidden. */
  C.showText = function (title, words, text) {
    C.byId("text-title").textContent = title;
    C.byId("text-words").textContent = words;
    C.byId("text-area").hidden = false;
    C.fill(C.byId("text-picture"));
    C.byId("text-area").value = text;
    C.byId("text-dialog").showModal();
    C.byId("text-area").select();
  };

  /** A picture to save by its context menu. */
  C.showPicture = function (title, blob) {
    const reader = new FileReader();
    reader.onload = () => {
      C.showText(title, "This frame cannot save files; save the picture by its context menu.", "");
      C.byId("text-area").hidden = true;
      C.fill(C.byId("text-picture"), C.el("img", { src: reader.result, alt: title }));
    };
    reader.readAsDataURL(blob);
  };

  C.save = function (name, type, content) {
    C.lastSaved = { name, type, content };
    if (boxed) {
      if (typeof content === "string") C.showText(name, "This frame cannot save files; copy the text instead.", content);
      else C.showPicture(name, content);
      return;
    }
    const address = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
    const link = C.el("a", { href: address, download: name });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(address), 10000);
  };

  // A spreadsheet takes text that starts like this for a formula; tokens and names come from anywhere.
  const harmless = (text) => (/^[=+\-@\t\r]/.test(text) ? "'" + text : text);
  const quoted = (value) => {
    if (value === null || value === undefined) return "";
    if (typeof value === "number") return String(value);
    return '"' + harmless(String(value)).replace(/"/g, '""') + '"';
  };

  C.csv = ({ columns, rows }) => [columns, ...rows].map((row) => row.map(quoted).join(",")).join("\r\n") + "\r\n";

  C.saveTable = function (name, table, kind) {
    if (kind === "csv") C.save(name + ".csv", "text/csv", C.csv(table));
    else C.save(name + ".json", "application/json", JSON.stringify(table.rows.map((row) => Object.fromEntries(table.columns.map((column, i) => [column || `column ${i + 1}`, row[i]]))), null, 1));
  };

  C.layerAndHead = (run, head) => [Math.floor(head / run.n_heads), head % run.n_heads];

  /** A map as a table (a row a head and checkpoint) or as a picture. */
  C.saveMap = function (map, kind) {
    if (!map.scores) return;
    const run = C.run();
    const name = fileName(`${run.name}_${map.measure}`);
    if (kind === "csv" || kind === "json") {
      const place = C.state().run;
      const heads = [...Array(map.scores.nHeads).keys()];
      const rows = () => map.scores.steps.flatMap((step) => heads.map((h) => [run.name, step, ...C.layerAndHead(run, h), map.measure, ...C.data.cells(place, map.measure, h, step)]));
      C.data.error(place, map.measure, 0, map.scores.steps[0]); // asks for what is not here yet
      C.data.whenHere(() => C.saveTable(name, { columns: ["run", "step", "layer", "head", "measure", "value", "standard_error"], rows: rows() }, kind));
    } else C.working(C.saveSvgText(name, kind, C.inLight(() => C.mapSvg(map))));
  };

  const fileName = (text) => text.replace(/[^A-Za-z0-9_.-]+/g, "-");

  /** An SVG as a PNG, twice as large. */
  async function drawn(text, width, height) {
    const picture = new Image();
    picture.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(text);
    await picture.decode();
    const canvas = C.el("canvas", { width: 2 * width, height: 2 * height });
    canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
    return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  }

  /** Saves a picture that is SVG, as it is or as PNG. */
  C.saveSvgText = async function (name, kind, text) {
    const [, width, height] = /width="([\d.]+)" height="([\d.]+)"/.exec(text).map(Number);
    if (kind === "svg") C.save(name + ".svg", "image/svg+xml", text);
    else C.save(name + ".png", "image/png", await drawn(text, width, height));
  };

  /** The curves with the axis that they share with the maps. */
  C.saveCurves = function (kind) {
    const { svg } = C.inLight(C.curvesPicture);
    svg.setAttribute("xmlns", "http://www.w3.org/2000/svg");
    return C.saveSvgText(fileName(C.run().name + "_curves"), kind, new XMLSerializer().serializeToString(svg));
  };

  /** Layer and head of what the Attention view shows; of pooled heads, in words. */
  C.shownHead = function (run) {
    const { pool } = C.state();
    const [layer, head] = C.layerAndHead(run, C.head());
    return pool ? [pool === "layer" ? layer : "all", pool === "max" ? "max" : "mean"] : [layer, head];
  };

  /** The chosen head's attention: a row a pair of query and key, or the matrix with its tokens. */
  C.saveAttention = function (kind) {
    const shown = C.attentionShown();
    if (!shown) return;
    const { attention, head } = shown;
    const [run, { tokens }] = [C.run(), attention.prompt];
    const name = fileName(`${run.name}_attention_${C.state().pool ? shown.name : C.headText(run, C.head())}_step${attention.step}`);
    if (kind === "png" || kind === "svg") {
      C.working(C.saveSvgText(name, kind, C.inLight(() => (C.state().picture === "lines" ? C.linesSvg(shown) : C.attentionSvg(attention, head, shown.name)))));
      return;
    }
    const whose = [run.name, C.state().prompt, attention.step, ...C.shownHead(run)];
    const rows = tokens.flatMap((token, q) => C.data.row(attention, head, q).map((value, k) => [...whose, q, token, k, tokens[k], Number(value.toFixed(4)), attention.prompt.targets[q].includes(k) ? 1 : 0]));
    C.saveTable(name, { columns: ["run", "prompt", "step", "layer", "head", "query", "query_token", "key", "key_token", "attention", "expected_target"], rows }, kind);
  };

  /** Saves the one <svg> of a figure, with its colours written in. */
  C.saveSvg = function (place, name) {
    const picture = place.querySelector("svg");
    if (!picture) return;
    const copy = picture.cloneNode(true);
    copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
    copy.setAttribute("font-family", "sans-serif");
    copy.setAttribute("style", `background:${C.color("paper")}`);
    C.save(name + ".svg", "image/svg+xml", new XMLSerializer().serializeToString(copy));
  };

  /** The Python that makes the figure in view. */
  C.python = function () {
    const [s, run] = [C.state(), C.run()];
    const opened = `cs.open_run(${JSON.stringify(run.source || `runs/${run.name}`)})`;
    const lines = ["import copyscope as cs"];
    if (s.view === "map") lines.push("", `cs.formation_map(${opened}, measure=${JSON.stringify(s.measure)})`);
    else if (s.view === "heads" || s.view === "report") lines.push("", `cs.formation_steps(${opened}.heads, ${JSON.stringify(C.scoreMeasure(run))})`);
    else if (s.view === "circuit" && run.measures.includes("previous_token")) lines.push("from copyscope.analyses.formation import order_of_appearance", "", `run = ${opened}`, "order_of_appearance(run.heads, run.model)");
    else if (s.view === "attention" && C.data.prompt(s.run, s.prompt)) {
      const { text } = C.data.prompt(s.run, s.prompt);
      const words = text ? `, text=${JSON.stringify(text)}` : s.prompt === run.prompts[0].id ? "" : `, prompt=${JSON.stringify(s.prompt)}`;
      lines.push("from copyscope.analyses.notebook import attention", "", "# a matplotlib figure; cs.explore(…) is the whole page", `attention(${opened}, "${C.data.headName(run, C.head())}", step=${C.data.nearest(run.checkpoints || run.steps, s.step)}${words})`);
    } else lines.push("", `# ${C.data.headName(run, C.head())} at step ${s.step}; the page opens at the same view`, `cs.explore(${opened}, ${JSON.stringify(C.writeHash())})`);
    return lines.join("\n") + "\n";
  };

  async function copy(title, text) {
    C.lastCopied = text;
    if (!boxed && navigator.clipboard) {
      try {
        await navigator.clipboard.writeText(text);
        C.notice(`${title}: copied.`, "done");
        setTimeout(() => C.notice("", "done"), 3000);
        return;
      } catch {
        // no permission: show it instead
      }
    }
    C.showText(title, "Select and copy.", text);
  }
  C.copyPython = () => copy("Python", C.python());
  C.copyLink = () => copy("Link", location.href.replace(/#.*$/, "") + C.writeHash());
})(Copyscope);
