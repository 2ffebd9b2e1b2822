// The page in a sandboxed frame of a notebook: passes its questions to the kernel, and the answers back.
export default {
  render({ model, el }) {
    const view = String(Math.random()); // one widget may be shown twice, and each frame gets its own answers
    const words = document.createElement("p");
    words.textContent = "Waiting for the kernel. In a saved or exported notebook there is none: run this cell again.";
    const frame = document.createElement("iframe");
    frame.setAttribute("sandbox", "allow-scripts");
    frame.title = "copyscope";
    frame.style.cssText = "width:100%;border:0";
    frame.style.height = `${Number(model.get("height"))}px`;

    function fromFrame(event) {
      if (event.source !== frame.contentWindow || !event.data) return;
      const { id, kind, value } = event.data;
      model.send({ view, id, kind, value });
    }
    function fromKernel(answer, buffers) {
      if (answer.view !== view) return;
      const given = buffers && buffers[0];
      const bytes = given ? new Uint8Array(given.buffer || given, given.byteOffset || 0, given.byteLength).slice().buffer : null;
      if (answer.id !== 0) {
        frame.contentWindow?.postMessage({ id: answer.id, error: answer.error, bytes }, "*", bytes ? [bytes] : []);
      } else if (answer.error) words.textContent = answer.error;
      else {
        frame.srcdoc = new TextDecoder().decode(bytes);
        el.replaceChildren(frame);
      }
    }
    window.addEventListener("message", fromFrame);
    model.on("msg:custom", fromKernel);
    el.replaceChildren(words);
    model.send({ view, id: 0, kind: "page", value: null });
    return () => {
      window.removeEventListener("message", fromFrame);
      model.off("msg:custom", fromKernel);
    };
  },
};
