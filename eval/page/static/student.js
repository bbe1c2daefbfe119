// The page's side of worker.js: every request to the worker is a promise.

export class Student {
    constructor() {
        this.requests = 0;
        this.pending = new Map(); // by the number of the request
        this.worker = new Worker('worker.js', { type: 'module' });
        this.worker.onmessage = ({ data }) => this.#answer(data);
        this.worker.onerror = (event) => {
            const message = event.message || 'a script could not be loaded';
            for (const { reject } of this.pending.values()) reject(new Error(`The thread of the model ended: ${message}; reload the page`));
            this.pending.clear();
        };
    }

    /** Load the weights of one precision. `onProgress` is called with the share loaded so far. */
    load({ dtype, mb }, onProgress) {
        return this.#request({ kind: 'load', dtype, bytes: mb * 1e6 }, ({ share }) => onProgress(share));
    }

    /**
     * Transcribe at most a window of samples. `onText` is called with the text so far, as it grows.
     * Resolves to { text, tokens, first, total }: the number of tokens, and the times to the first token and in all in ms.
     */
    transcribe(samples, language, onText = () => {}) {
        return this.#request({ kind: 'transcribe', samples, language }, ({ text }) => onText(text));
    }

    #request(message, onUpdate) {
        this.requests += 1;
        const id = this.requests;
        return new Promise((resolve, reject) => {
            this.pending.set(id, { resolve, reject, onUpdate });
            this.worker.postMessage({ ...message, id });
        });
    }

    #answer(data) {
        const { resolve, reject, onUpdate } = this.pending.get(data.id);
        if (data.kind !== 'done' && data.kind !== 'error') {
            onUpdate(data);
            return;
        }
        this.pending.delete(data.id);
        if (data.kind === 'done') resolve(data);
        else reject(new Error(data.message));
    }
}
