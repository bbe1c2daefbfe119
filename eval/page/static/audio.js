// Audio as 16 kHz mono samples, which all the models take.

export const RATE = 16000;
const FRAME = RATE / 10;
const SILENT = 0.003; // -50 dB: audio counts as silent if the root mean square of every tenth of a second is below

/** Return the samples of an audio file, which the browser decodes. */
export async function decode(file) {
    const bytes = await file.arrayBuffer();
    let decoded;
    try {
        decoded = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(bytes); // this also resamples
    } catch (error) {
        throw new Error(`${file.name}: expected audio that this browser can play, found none; try WAV, MP3 or FLAC`);
    }
    const samples = new Float32Array(decoded.length);
    for (let channel = 0; channel < decoded.numberOfChannels; channel += 1) {
        decoded.getChannelData(channel).forEach((value, index) => { samples[index] += value / decoded.numberOfChannels; });
    }
    if (samples.length < RATE / 100) throw new Error(`${file.name}: expected audio, found only ${samples.length} samples; choose a longer recording`);
    return samples;
}

/** Return how many samples to transcribe at once: all if they fit the window, else up to the quietest place of its second half. */
export function cut(samples, window) {
    if (samples.length <= window) return samples.length;
    let [lowest, length] = [Infinity, window];
    for (let start = window / 2; start + FRAME <= window; start += FRAME / 2) {
        const level = rms(samples.subarray(start, start + FRAME));
        if (level <= lowest) [lowest, length] = [level, start + FRAME / 2];
    }
    return Math.round(length);
}

/** Return whether nobody speaks in the samples. */
export function silent(samples) {
    for (let start = 0; start < samples.length; start += FRAME) {
        if (rms(samples.subarray(start, start + FRAME)) > SILENT) return false;
    }
    return true;
}

function rms(samples) {
    return Math.sqrt(samples.reduce((sum, value) => sum + value * value, 0) / Math.max(1, samples.length));
}

/** Return the waveform as an SVG path of `bars` vertical strokes, in a box of 2 * bars by 40. */
export function outline(samples, bars = 120) {
    const size = samples.length / bars;
    const peaks = Array.from({ length: bars }, (_, bar) => {
        const part = samples.subarray(Math.floor(bar * size), Math.max(Math.floor(bar * size) + 1, (bar + 1) * size));
        return part.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
    });
    const most = Math.max(0.02, ...peaks);
    return peaks.map((peak, bar) => {
        const half = Math.max(0.4, 19 * peak / most);
        return `M${2 * bar + 1} ${(20 - half).toFixed(1)}V${(20 + half).toFixed(1)}`;
    }).join('');
}

/** A recording from the microphone: all its samples so far, except those that were dropped. */
export class Microphone {
    static async open() {
        if (!navigator.mediaDevices) {
            throw new Error(`The microphone works only on https or localhost, and this page is at ${location.origin}; choose a recording instead`);
        }
        let stream;
        try {
            // The models were trained on unprocessed audio.
            const audio = { channelCount: 1, echoCancellation: false, noiseSuppression: false };
            stream = await navigator.mediaDevices.getUserMedia({ audio });
        } catch (error) {
            const denied = error.name === 'NotAllowedError';
            throw new Error(denied ? 'The browser does not let this page use the microphone; allow it next to the address and try again'
                : `No microphone could be opened (${error.message}); connect one, or choose a recording`);
        }
        // At the microphone's own sample rate, since Firefox does not resample it.
        const context = new AudioContext();
        await context.audioWorklet.addModule('recorder.js');
        const recorder = new AudioWorkletNode(context, 'recorder');
        context.createMediaStreamSource(stream).connect(recorder);
        return new Microphone(stream, context, recorder);
    }

    constructor(stream, context, recorder) {
        this.stream = stream;
        this.context = context;
        this.blocks = [];
        this.on = true;
        recorder.port.onmessage = ({ data }) => this.blocks.push(data);
    }

    /** Return the samples at 16 kHz. */
    async samples() {
        const length = this.blocks.reduce((sum, block) => sum + block.length, 0);
        if (!length) return new Float32Array();
        const all = new Float32Array(length);
        let offset = 0;
        for (const block of this.blocks) {
            all.set(block, offset);
            offset += block.length;
        }
        this.blocks = [all];
        const rate = this.context.sampleRate;
        const offline = new OfflineAudioContext(1, Math.max(1, Math.floor(length * RATE / rate)), RATE);
        const source = offline.createBufferSource();
        source.buffer = new AudioBuffer({ length, sampleRate: rate });
        source.buffer.copyToChannel(all, 0);
        source.connect(offline.destination);
        source.start();
        return (await offline.startRendering()).getChannelData(0);
    }

    /** Remove the first `count` samples, counted at 16 kHz. Call `samples` first. */
    drop(count) {
        const [all, ...later] = this.blocks;
        this.blocks = [all.subarray(Math.round(count * this.context.sampleRate / RATE)), ...later];
    }

    stop() {
        this.on = false;
        this.stream.getTracks().forEach((track) => track.stop());
        this.context.suspend();
    }
}
