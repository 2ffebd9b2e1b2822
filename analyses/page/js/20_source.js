"use strict";
// The three sources of data. All answer index(), block(name), library(name), prompt(run, text) and changed().
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

  function runScript(page, code) {
    const script = page.createElement("script");
    script.textContent = code;
    page.head.append(script);
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
        runScript(page, new TextDecoder().decode(await gunzip(C.bytesOf(text("lib-" + name)))));
      },
      prompt: async () => {
        throw new Error("a saved page has only the prompts saved with it; use `copyscope explore`, or cs.prompt_widget in a notebook, for new ones");
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

  /** Data from a notebook's kernel, asked through the window that frames the page. */
  C.kernelSource = function () {
    const waiting = new Map(); // number of the question -> what to do with its answer
    let [asked, stamp] = [1, null];
    window.addEventListener("message", (event) => {
      const { id, error, bytes } = (event.source === window.parent && event.data) || {};
      const answer = waiting.get(id);
      if (!answer) return;
      waiting.delete(id);
      if (error) answer.reject(new Error(String(error)));
      else answer.resolve(bytes);
    });
    function ask(kind, value = null) {
      return new Promise((resolve, reject) => {
        const id = asked++;
        waiting.set(id, { resolve, reject });
        window.parent.postMessage({ id, kind, value }, "*"); // a sandboxed frame does not know its parent's origin
      });
    }
    const text = async (...question) => new TextDecoder().decode(await ask(...question));
    const json = async (...question) => JSON.parse(await text(...question));
    return {
      live: true,
      index: () => json("index"),
      has: () => true,
      block: (name) => ask("block", name),
      library: async (name) => runScript(document, await text("library", name)),
      prompt: (run, typed) => json("prompt", { run, text: typed }),
      changed: async () => {
        const [before, now] = [stamp, (stamp = await text("changed"))];
        return before !== null && now !== before;
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
