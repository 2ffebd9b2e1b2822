"use strict";
// The two sources of data. Both answer index(), block(name), library(name), prompt(run, text) and changed().
(function (C) {
  C.bytesOf = function (base64) {
    const text = atob(base64.trim());
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    return bytes;
  };

  function gunzip(bytes) {
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).arrayBuffer();
  }

  /** Data inside the page itself: nothing is ever asked of anybody. */
  C.embeddedSource = function (page) {
    function text(id) {
      const element = page.getElementById(id);
      if (!element) throw new Error(`this page has no ${id}`);
      return element.textContent;
    }
    return {
      live: false,
      index: async () => JSON.parse(text("index")),
      has: (name) => page.getElementById("block-" + name) !== null,
      block: async (name) => gunzip(C.bytesOf(text("block-" + name))),
      library: async (name) => {
        const code = new TextDecoder().decode(await gunzip(C.bytesOf(text("lib-" + name))));
        const script = page.createElement("script");
        script.textContent = code;
        page.head.append(script);
      },
      prompt: async () => {
        throw new Error("a saved page has only the prompts saved with it; use `copyscope explore` for new ones");
      },
      changed: async () => false,
    };
  };

  /** Data from the server that sent the page. Addresses are relative to it. */
  C.liveSource = function () {
    let stamp = null;
    async function ask(address, options) {
      let answer;
      try {
        answer = await fetch(address, options);
      } catch {
        throw new Error("the server does not answer; is `copyscope explore` still running?");
      }
      if (answer.ok) return answer;
      let why = `${answer.status} for ${address}`;
      try {
        why = (await answer.json()).error || why;
      } catch {
        // no JSON: the status has to do
      }
      throw new Error(why);
    }
    const encoded = (name) => name.split("/").map(encodeURIComponent).join("/");
    return {
      live: true,
      index: async () => (await ask("index.json")).json(),
      has: () => true,
      block: async (name) => (await ask("block/" + encoded(name))).arrayBuffer(),
      library: (name) =>
        new Promise((resolve, reject) => {
          const script = document.createElement("script");
          script.src = `lib/${name}.js`;
          script.onload = resolve;
          script.onerror = () => reject(new Error(`the server did not send lib/${name}.js`));
          document.head.append(script);
        }),
      prompt: async (run, text) => {
        const body = JSON.stringify({ run, text });
        return (await ask("prompt", { method: "POST", headers: { "content-type": "application/json" }, body })).json();
      },
      changed: async () => {
        const now = (await (await ask("changed")).json()).stamp;
        const differs = stamp !== null && JSON.stringify(now) !== JSON.stringify(stamp);
        stamp = now;
        return differs;
      },
    };
  };

  const libraries = {};
  /** Loads "circuitsvis" once, when first needed. */
  C.library = function (name) {
    if (!libraries[name]) libraries[name] = C.data.source.library(name);
    return libraries[name];
  };
})(Copyscope);
