// In the audio thread: hand on what the microphone hears, a twelfth of a second at a time.
registerProcessor('recorder', class extends AudioWorkletProcessor {
    block = new Float32Array(4096);
    filled = 0;

    process([[samples]]) {
        if (!samples) return true;
        this.block.set(samples, this.filled);
        this.filled += samples.length; // 128, of which 4096 is a multiple
        if (this.filled === this.block.length) {
            this.port.postMessage(this.block.slice());
            this.filled = 0;
        }
        return true;
    }
});
