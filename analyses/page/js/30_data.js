"use strict";
// What is known: the index and the blocks fetched so far. Drawing asks with get-like functions that answer at once;
// what is not here yet is fetched, and the page is drawn again when it arrives.
(function (C) {
  const ATTENTION_BYTES = 96e6;
  const MAX_AT_ONCE = 3;
  const READ = { scores: (b) => new Float32Array(b), attention: (b) => new Uint8Array(b), json: (b) => JSON.parse(new TextDecoder().decode(b)) };
  const CALIBRATION = /_(null|selectivity|se|p|control|matched)$/;
  const data = (C.data = { source: null, index: null, problems: new Map() });
  let blocks = new Map(); // name -> typed array
  let pending = new Map(); // name -> promise
  let queue = []; // attention wanted by the last drawing, newest drawing first
  const ownPrompts = []; // [run index, prompt]: typed in this page

  data.load = async function (source) {
    data.source = source;
    data.index = await source.index();
  };

  /** Reads the index again (new checkpoints, or replaced ones); every block is asked anew. */
  data.reload = async function () {
    const index = await data.source.index();
    for (const [run, prompt] of ownPrompts)
      if (index.runs[run] && !index.runs[run].prompts.some((p) => p.id === prompt.id)) index.runs[run].prompts.push(prompt);
    blocks = new Map();
    pending = new Map();
    ranges.clear();
    data.problems.clear();
    data.index = index;
  };

  /** The server computes a prompt; it joins the run's prompts and is returned. */
  data.addPrompt = async function (run, text) {
    const prompt = await data.source.prompt(run, text);
    const known = data.index.runs[run].prompts;
    const at = known.findIndex((p) => p.id === prompt.id);
    if (at < 0) known.push(prompt);
    else known[at] = prompt;
    ownPrompts.push([run, prompt]);
    return prompt;
  };

  /** Asks for the typed prompt of an address, where the page has not got it: after a reload, or from a link. */
  data.knowTyped = async function (wanted) {
    const run = data.index.runs[wanted.run || 0];
    if (!wanted.text || !data.source.live || !run || run.prompts.some((p) => p.text === wanted.text)) return;
    await data.addPrompt(wanted.run || 0, wanted.text);
  };

  data.newDrawing = () => (queue = []);
  data.busy = () => pending.size > 0 || queue.length > 0;
  /** Acts when nothing is on its way any more: at once, if that is so now. */
  data.whenHere = function (action) {
    if (!data.busy()) return action();
    const quiet = async () => {
      while (data.busy()) await new Promise((resolve) => setTimeout(resolve, 10));
    };
    return C.working(quiet().then(action));
  };

  function got(name, kind) {
    const block = blocks.get(name);
    if (block) {
      if (kind === "attention") {
        blocks.delete(name); // the last used goes to the end
        blocks.set(name, block);
      }
      return block;
    }
    if (!data.problems.has(name) && !pending.has(name)) {
      if (kind === "scores" || !data.source.live) fetchBlock(name, kind);
      else if (!queue.some(([wanted]) => wanted === name)) {
        queue.push([name, kind]);
        queueMicrotask(pump);
      }
    }
    return undefined;
  }

  function pump() {
    while (queue.length && pending.size < MAX_AT_ONCE) fetchBlock(...queue.shift());
  }

  function fetchBlock(name, kind) {
    const ask = data.source.block(name).then(
      (buffer) => {
        if (pending.get(name) !== ask) return; // the index was read again meanwhile
        blocks.set(name, READ[kind](buffer));
        if (kind === "attention") data.modelIsHere = true;
        data.problems.delete(name);
        forget();
      },
      (error) => data.problems.set(name, error.message)
    );
    pending.set(name, ask);
    ask.finally(() => {
      if (pending.get(name) === ask) pending.delete(name);
      pump();
      C.redraw();
    });
  }

  function forget() {
    let bytes = 0;
    const attention = [...blocks].filter(([name]) => name.startsWith("attention/")).reverse();
    for (const [name, block] of attention) {
      bytes += block.byteLength;
      if (bytes > ATTENTION_BYTES) blocks.delete(name);
    }
  }

  /** Scores of one measure, or of one ablation effect ("zero:copying_loss"): {steps, values, nHeads}, or undefined. */
  data.scores = function (runIndex, measure) {
    const run = data.index.runs[runIndex];
    const ablation = run.ablations && run.ablations[measure];
    if (!ablation && !run.measures.includes(measure)) return undefined;
    const values = got(ablation ? ablation.block : `scores/${runIndex}/${measure}`, "scores");
    return values && { steps: ablation ? ablation.steps : run.steps, values, nHeads: run.n_layers * run.n_heads };
  };

  /** One head's score at a step; null where it was not measured, undefined where it is not here yet. */
  data.value = function (runIndex, measure, head, step) {
    const scores = data.scores(runIndex, measure);
    if (!scores) return undefined;
    const column = scores.steps.indexOf(step);
    const value = column < 0 ? NaN : scores.values[column * scores.nHeads + head];
    return Number.isNaN(value) ? null : value;
  };

  /** The same of a block that shares the layout of `scores`, such as an effect's control; null where it is not there. */
  data.block = function (name, scores, head, step) {
    const values = got(name, "scores");
    const value = values ? values[scores.steps.indexOf(step) * scores.nHeads + head] : NaN;
    return Number.isNaN(value) ? null : value;
  };

  /** The standard error of `value`; null where it is not known, undefined where it is not here yet. */
  data.error = function (runIndex, measure, head, step) {
    const run = data.index.runs[runIndex];
    const effect = (run.ablations || {})[measure];
    if (!effect) return run.measures.includes(measure + "_se") ? data.value(runIndex, measure + "_se", head, step) : null;
    const column = effect.steps.indexOf(step);
    if (!effect.se || column < 0) return null;
    const values = got(effect.se, "scores");
    const error = values && values[column * run.n_layers * run.n_heads + head];
    return Number.isNaN(error) ? null : error;
  };

  /** Value and standard error as a file has them: to the digits that they mean, null where there is none. */
  data.cells = function (runIndex, measure, head, step) {
    const [value, error] = [data.value(runIndex, measure, head, step), data.error(runIndex, measure, head, step)];
    return [C.meant(value, error), C.meant(error, null, 2)];
  };

  data.prompt = (runIndex, id) => data.index.runs[runIndex].prompts.find((prompt) => prompt.id === id) || null;

  /** The step of those in `steps` nearest to `step`, measured in doublings; null of none. */
  data.nearest = function (steps, step) {
    let best = null;
    const far = (s) => Math.abs(Math.log2(s + 1) - Math.log2(step + 1));
    for (const s of steps) if (best === null || far(s) < far(best)) best = s;
    return best;
  };

  /** Attention of a prompt at the embedded step nearest to `step`: {step, tokens, bytes, nTokens, triangle} or undefined. */
  data.attention = function (runIndex, promptId, step) {
    const prompt = data.prompt(runIndex, promptId);
    if (!prompt || !prompt.steps.length) return undefined;
    const at = data.nearest(prompt.steps, step);
    const bytes = got(`attention/${runIndex}/${promptId}/${at}`, "attention");
    const nTokens = prompt.tokens.length;
    return bytes && { step: at, prompt, bytes, nTokens, triangle: (nTokens * (nTokens + 1)) / 2 };
  };

  /** A block of JSON by its name, or undefined while it is on its way. */
  data.json = (name) => got(name, "json");

  const predicted = (runIndex, prompt, step, removed) => `predictions/${runIndex}/${prompt.id}/${data.nearest(prompt.steps, step)}${removed ? "/" + removed : ""}`;
  /** Predictions of a prompt at the embedded step nearest to `step`, of the model without the head `removed` ("" for none). */
  data.predictions = function (runIndex, promptId, step, removed) {
    const prompt = data.prompt(runIndex, promptId);
    if (!prompt || !prompt.predictions || !prompt.steps.length) return undefined;
    const found = got(predicted(runIndex, prompt, step, removed), "json");
    return found && { step: data.nearest(prompt.steps, step), ...found };
  };
  data.predictionsProblem = function (runIndex, promptId, step, removed) {
    const prompt = data.prompt(runIndex, promptId);
    return (prompt && data.problems.get(predicted(runIndex, prompt, step, removed))) || null;
  };

  const pools = new WeakMap(); // bytes of attention -> {kind: bytes of one pooled head}
  /** One pattern of several heads: their mean, or the largest at each pair; a stand-in for the attention of one head. */
  data.pooled = function (attention, kind, heads) {
    const key = kind + heads.join(",");
    if (!pools.has(attention.bytes)) pools.set(attention.bytes, {});
    const known = pools.get(attention.bytes);
    if (!known[key]) {
      const { triangle, bytes } = attention;
      const out = (known[key] = new Uint8Array(triangle));
      for (let i = 0; i < triangle; i++) {
        let [sum, most] = [0, 0];
        for (const head of heads) {
          const value = bytes[head * triangle + i];
          sum += value;
          if (value > most) most = value;
        }
        out[i] = kind === "max" ? most : Math.round(sum / heads.length);
      }
    }
    return { ...attention, bytes: known[key] };
  };

  /** Why attention is missing, in words, or null while it is on its way. */
  data.attentionProblem = function (runIndex, promptId, step) {
    const prompt = data.prompt(runIndex, promptId);
    if (!prompt) return "This page has no prompts.";
    if (!prompt.steps.length) return "This page has no attention for this prompt.";
    return data.problems.get(`attention/${runIndex}/${promptId}/${data.nearest(prompt.steps, step)}`) || null;
  };

  /** One row of attention (over keys 0 … query), each in [0, 1]. */
  data.row = function (attention, head, query) {
    const start = head * attention.triangle + (query * (query + 1)) / 2;
    return Array.from(attention.bytes.subarray(start, start + query + 1), (byte) => byte / 255);
  };

  data.isCalibration = (measure) => CALIBRATION.test(measure);

  /** Words and range of a measure, also of one that the glossary does not know. */
  data.words = function (measure) {
    const known = data.index.measures && data.index.measures[measure];
    if (known) return known;
    return { title: measure ? measure.replace(/_/g, " ") : "Nothing measured", low: null, high: null, signed: true, unit: "", scale: "", meaning: "", source: "", cannot_tell: "" };
  };

  const ranges = new Map();
  /** Colour range of a measure, the same over all steps, since scaling each step to itself would fake formation. */
  data.range = function (runIndex, measure) {
    const words = data.words(measure);
    if (!measure) return { signed: false, low: 0, high: 1 };
    const signed = words.signed || measure.includes(":");
    if (words.low !== null && words.high !== null) {
      const far = Math.max(Math.abs(words.low), Math.abs(words.high));
      if (!measure.includes(":")) return signed ? { signed, low: -far, high: far } : { signed, low: 0, high: words.high };
    }
    const key = runIndex + "/" + measure;
    if (!ranges.has(key)) {
      const scores = data.scores(runIndex, measure);
      if (!scores) return { signed, low: signed ? -1 : 0, high: 1 };
      let far = 0;
      for (const value of scores.values) if (Math.abs(value) > far && Number.isFinite(value)) far = Math.abs(value);
      ranges.set(key, { signed, low: signed ? -(far || 1) : 0, high: far || 1 });
    }
    return ranges.get(key);
  };

  data.headName = (run, head) => `L${Math.floor(head / run.n_heads)}H${head % run.n_heads}`;
  data.formation = (run, measure, head) => ((run.formation || {})[measure] || []).find((row) => row.head === head) || null;
  /** Whether it is known of a measure when heads formed. */
  data.formationKnown = (run, measure) => Boolean((run.formation || {})[measure]);
  data.isAbove = function (run, measure, head) {
    const known = (run.above_null || {})[measure];
    return known ? known.includes(head) : null;
  };
  data.tokensAt = function (run, step) {
    const at = run.steps.indexOf(step);
    return at < 0 || !run.tokens ? null : run.tokens[at];
  };
})(Copyscope);
