"use strict";
// Colour scales, fixed over all steps, and small pictures made of them.
(function (C) {
  const VIRIDIS = "440154 482878 3e4989 31688e 26828e 1f9e89 35b779 6ece58 b5de2b fde725";
  const SIGNED = "053061 2166ac 4393c3 92c5de d1e5f0 f7f7f7 fddbc7 f4a582 d6604d b2182b 67001f";
  const ATTENTION = "ffffff deebf7 c6dbef 9ecae1 6baed6 4292c6 2171b5 08519c 08306b";
  // In the dark 0 is the dark end, and blue and red meet in the dark: white blocks would glare.
  const ATTENTION_DARK = "1b2027 17304a 164568 1d5d8c 2f79ae 4c97cb 7ab6de b0d5ee e8f4fc";
  const SIGNED_DARK = "b9dcff 7db8f0 4a8fd0 2a669f 1f4468 1f242a 5c2f27 94402f c85c45 ef8a70 ffc4b3";

  function table(stops) {
    const colors = stops.split(" ").map((hex) => [0, 2, 4].map((i) => parseInt(hex.slice(i, i + 2), 16)));
    const out = { rgb: [], packed: new Uint32Array(256) };
    for (let i = 0; i < 256; i++) {
      const at = (i / 255) * (colors.length - 1);
      const [low, share] = [Math.min(Math.floor(at), colors.length - 2), at - Math.min(Math.floor(at), colors.length - 2)];
      const rgb = colors[low].map((c, k) => Math.round(c + (colors[low + 1][k] - c) * share));
      out.rgb.push(rgb);
      out.packed[i] = pack(rgb);
    }
    return out;
  }
  const pack = ([r, g, b]) => ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0; // bytes in the order of ImageData
  const parse = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));

  const unsigned = table(VIRIDIS);
  const themes = {
    light: { unsigned, signed: table(SIGNED), attention: table(ATTENTION) },
    dark: { unsigned, signed: table(SIGNED_DARK), attention: table(ATTENTION_DARK) },
  };
  let scales = themes.light;
  C.attentionScale = () => scales.attention;
  C.packColor = (hex) => pack(parse(hex));

  /** The colour table index, 0 to 255, of a value in a range; -1 for a missing value. */
  C.shade = function (value, range) {
    if (value === null || value === undefined || Number.isNaN(value)) return -1;
    return Math.max(0, Math.min(255, Math.round(((value - range.low) / (range.high - range.low)) * 255)));
  };
  C.scaleOf = (range) => (range.signed ? scales.signed : scales.unsigned);
  C.css = function (value, range, missing) {
    const shade = C.shade(value, range);
    return shade < 0 ? missing : `rgb(${C.scaleOf(range).rgb[shade].join(",")})`;
  };
  /** Black or white, whichever can be read on that colour. */
  C.inkOn = function (value, range) {
    const shade = C.shade(value, range);
    return shade < 0 ? "#222" : C.inkOnRgb(C.scaleOf(range).rgb[shade]);
  };
  /** By the luminance of WCAG 2: one of the two stands out by 4.58 or more from any colour. */
  C.inkOnRgb = function (rgb) {
    const [r, g, b] = rgb.map((v) => (v / 255 <= 0.03928 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000" : "#fff";
  };

  /** A colour bar with its ends in words; `formed`: whether diamonds mark formation steps. */
  C.colorBar = function (place, range, unit, formed) {
    C.once(place, JSON.stringify([range, unit, formed]), () => {
      const stops = C.scaleOf(range).rgb.filter((_, i) => i % 15 === 0).map((rgb) => `rgb(${rgb.join(",")})`);
      C.fill(
        place,
        C.el("span", {}, C.precise(range.low)),
        C.el("span", { class: "bar-colors", role: "img", "aria-label": "colour scale", style: `background:linear-gradient(90deg,${stops})` }),
        C.el("span", {}, C.precise(range.high) + (unit ? " " + unit : "")),
        C.el("span", { class: "bar-missing" }),
        C.el("span", { class: "wordy" }, "not measured"),
        formed ? C.el("span", { class: "bar-formed" }, "◆", C.el("span", { class: "wordy" }, " formed at")) : null
      );
    });
  };

  /** One head's attention into a canvas of T × T pixels; the style sheet scales it. The masked triangle is light grey. */
  C.paintAttention = function (canvas, attention, head) {
    const size = attention.nTokens;
    if (canvas.width !== size || canvas.height !== size) canvas.width = canvas.height = size;
    const context = canvas.getContext("2d");
    if (!canvas.image || canvas.image.width !== size || canvas.masked !== C.maskedColor) {
      canvas.image = context.createImageData(size, size);
      canvas.pixels = new Uint32Array(canvas.image.data.buffer).fill(C.maskedColor);
      canvas.masked = C.maskedColor;
    }
    const { pixels } = canvas;
    const colors = scales.attention.packed;
    let from = head * attention.triangle;
    for (let query = 0; query < size; query++) {
      const row = query * size;
      for (let key = 0; key <= query; key++) pixels[row + key] = colors[attention.bytes[from++]];
    }
    context.putImageData(canvas.image, 0, 0);
  };

  /** B − A of one head's attention, blue to red. */
  C.paintDifference = function (canvas, a, b, head) {
    const size = a.nTokens;
    if (canvas.width !== size || canvas.height !== size) canvas.width = canvas.height = size;
    const context = canvas.getContext("2d");
    const image = context.createImageData(size, size);
    const pixels = new Uint32Array(image.data.buffer).fill(C.maskedColor);
    let from = head * a.triangle;
    for (let query = 0; query < size; query++)
      for (let key = 0; key <= query; key++, from++)
        pixels[query * size + key] = scales.signed.packed[(b.bytes[from] - a.bytes[from] + 255) >> 1];
    context.putImageData(image, 0, 0);
  };

  /** Light or dark: as chosen, else as the system has it. */
  C.isDark = () => (C.state().theme || (window.matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";

  /** What `draw` makes in the light theme, for a paper. */
  C.inLight = function (draw) {
    const root = document.documentElement;
    const { theme } = root.dataset;
    const before = scales;
    root.dataset.theme = "light";
    scales = themes.light;
    try {
      return draw();
    } finally {
      root.dataset.theme = theme;
      scales = before;
    }
  };

  C.readTheme = function () {
    const theme = C.isDark() ? "dark" : "light";
    document.documentElement.dataset.theme = theme;
    scales = themes[theme];
    C.maskedColor = C.packColor(C.color("masked"));
  };
})(Copyscope);
