// Runs in the audio thread: pass the samples of the microphone to the page, 4096 at a time (85 ms at 48 kHz).
registerProcessor('recorder', class extends AudioWorkletProcessor {
    block = new Float32Array(4096);
    filled = 0;

    process([[samples]]) {
        if (!samples) return true;
        this.block.set(samples, this.filled);
        this.filled += samples.length; // always 128, which divides 4096
        if (this.filled === this.block.length) {
            this.port.postMessage(this.block.slice());
            this.filled = 0;
        }
        return true;
    }
});
