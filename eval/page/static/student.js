// The page's side of worker.js: one request after the other, each a promise.

export class Student {
    constructor() {
        this.asked = 0;
        this.waiting = new Map(); // by number
        this.worker = new Worker('worker.js', { type: 'module' });
        this.worker.onmessage = ({ data }) => this.#answer(data);
        this.worker.onerror = (event) => {
            const message = event.message || 'a script could not be loaded';
            for (const { reject } of this.waiting.values()) reject(new Error(`The model's thread ended: ${message}; reload the page`));
            this.waiting.clear();
        };
    }

    /** The weights of one precision; `tell` hears the share loaded so far. */
    load({ dtype, mb }, tell) {
        return this.#ask({ kind: 'load', dtype, bytes: mb * 1e6 }, ({ share }) => tell(share));
    }

    /** { text, tokens, first, total } of at most a window of samples; `tell` hears the text as it grows. */
    transcribe(samples, language, tell = () => {}) {
        return this.#ask({ kind: 'transcribe', samples, language }, ({ text }) => tell(text));
    }

    #ask(message, tell) {
        this.asked += 1;
        const id = this.asked;
        return new Promise((resolve, reject) => {
            this.waiting.set(id, { resolve, reject, tell });
            this.worker.postMessage({ ...message, id });
        });
    }

    #answer(data) {
        const { resolve, reject, tell } = this.waiting.get(data.id);
        if (data.kind !== 'done' && data.kind !== 'error') {
            tell(data);
            return;
        }
        this.waiting.delete(data.id);
        if (data.kind === 'done') resolve(data);
        else reject(new Error(data.message));
    }
}
