// Material for MkDocs searches in a worker, and browsers run none for pages read from a folder. There
// a hidden frame does a worker's work. Material asks for the name IFrameWorker to know of it.
if (location.protocol === "file:") {
  const load = (page, url) =>
    new Promise((resolve, reject) => {
      const script = page.createElement("script");
      script.src = url;
      script.onload = resolve;
      script.onerror = () => reject(new Error(`cannot load ${url}`));
      page.body.append(script);
    });

  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      const inside = (this.inside = frame.contentWindow);
      inside.importScripts = (...urls) =>
        urls.reduce((before, one) => before.then(() => load(inside.document, one)), Promise.resolve());
      inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      this.ready = load(inside.document, new URL(url, location).href);
      this.ready.catch((error) => this.dispatchEvent(new ErrorEvent("error", { error })));
      this.terminate = () => frame.remove();
    }

    postMessage(data) {
      // One after the other, and none before the script is there.
      this.ready = this.ready.then(() =>
        this.inside.dispatchEvent(new this.inside.MessageEvent("message", { data })),
      );
    }
  };
  window.Worker = window.IFrameWorker;
}
