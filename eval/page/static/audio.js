// Sound to the 16 kHz mono samples that every model here takes.

export const RATE = 16000;
const FRAME = RATE / 10;
const SILENT = 0.003; // root mean square of the loudest tenth of a second, -50 dB: below, nobody speaks

/** Samples of an audio file, by the browser's own decoders. */
export async function decode(file) {
    const bytes = await file.arrayBuffer();
    let sound;
    try {
        sound = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(bytes); // resamples as well
    } catch (error) {
        throw new Error(`${file.name}: expected audio that this browser can play, found none; try WAV, MP3 or FLAC`);
    }
    const samples = new Float32Array(sound.length);
    for (let channel = 0; channel < sound.numberOfChannels; channel += 1) {
        sound.getChannelData(channel).forEach((value, index) => { samples[index] += value / sound.numberOfChannels; });
    }
    if (samples.length < RATE / 100) throw new Error(`${file.name}: expected sound, found ${samples.length} samples`);
    return samples;
}

/** How many samples to read at once: all that fits into the window, or up to the quietest place of its second half. */
export function cut(samples, window) {
    if (samples.length <= window) return samples.length;
    let [quietest, place] = [Infinity, window];
    for (let start = window / 2; start + FRAME <= window; start += FRAME / 2) {
        const power = loudness(samples.subarray(start, start + FRAME));
        if (power <= quietest) [quietest, place] = [power, start + FRAME / 2];
    }
    return Math.round(place);
}

export function silent(samples) {
    for (let start = 0; start < samples.length; start += FRAME) {
        if (loudness(samples.subarray(start, start + FRAME)) > SILENT) return false;
    }
    return true;
}

function loudness(samples) {
    return Math.sqrt(samples.reduce((sum, value) => sum + value * value, 0) / Math.max(1, samples.length));
}

/** The outline of a recording as an SVG path of `bars` strokes in a box of 2 * bars by 40. */
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

/** What is being said: its samples so far that have not been dropped. */
export class Microphone {
    static async open() {
        if (!navigator.mediaDevices) {
            throw new Error(`The microphone needs https or localhost, and this page is at ${location.origin}; recordings work`);
        }
        let stream;
        try {
            // The students have learned unprocessed sound.
            const audio = { channelCount: 1, echoCancellation: false, noiseSuppression: false };
            stream = await navigator.mediaDevices.getUserMedia({ audio });
        } catch (error) {
            const denied = error.name === 'NotAllowedError';
            throw new Error(denied ? 'The browser does not let this page use the microphone; allow it beside the address and try again'
                : `No microphone could be opened (${error.message}); connect one, or choose a recording`);
        }
        // At the device's own rate, since Firefox connects no other.
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

    async samples() {
        const length = this.blocks.reduce((sum, block) => sum + block.length, 0);
        if (!length) return new Float32Array();
        const all = new Float32Array(length);
        let at = 0;
        for (const block of this.blocks) {
            all.set(block, at);
            at += block.length;
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

    /** Forget so many samples at 16 kHz; call it only after `samples`. */
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
