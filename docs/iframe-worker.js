// Search in pages that are opened from a folder. There, browsers refuse to start the worker that
// searches, so this stand-in for Worker runs the worker's script in a hidden frame instead.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(script) {
      super();
      this.frame = new Promise((resolve) => {
        const frame = document.createElement("iframe");
        frame.hidden = true;
        frame.srcdoc = "<!doctype html><body>";
        frame.onload = () => {
          const inside = frame.contentWindow;
          // Answers of the script; in a worker, postMessage leads out.
          inside.postMessage = (data) =>
            this.dispatchEvent(new MessageEvent("message", { data }));
          const element = inside.document.createElement("script");
          element.src = script;
          element.onload = () => resolve(inside);
          inside.document.body.append(element);
        };
        const attach = () => document.body.append(frame);
        if (document.body) attach();
        else document.addEventListener("DOMContentLoaded", attach);
      });
    }

    postMessage(data) {
      this.frame.then((inside) =>
        inside.dispatchEvent(new MessageEvent("message", { data })),
      );
    }

    terminate() {
      this.frame.then((inside) => inside.frameElement.remove());
    }
  };
}
