// The student itself, in a thread of its own, so that the page stays alive while it works.
import { AutoFeatureExtractor, AutoTokenizer, env, TextStreamer, WhisperForConditionalGeneration } from './packages/transformers.js';

env.allowRemoteModels = false;
env.allowLocalModels = true;
// A path: of a whole address transformers.js says that it holds no tokenizer.
env.localModelPath = new URL('.', import.meta.url).pathname;
// transformers.js keeps files by address for ever, and another student may be served at this one tomorrow.
env.useBrowserCache = false;
env.useWasmCache = false;
const { wasm } = env.backends.onnx;
wasm.wasmPaths = { wasm: new URL('packages/ort.wasm', import.meta.url).href };

let student = null;
let work = Promise.resolve();
self.onmessage = ({ data }) => {
    work = work.then(() => (data.kind === 'load' ? load(data) : transcribe(data)))
        .catch((error) => postMessage({ id: data.id, kind: 'error', message: error?.message ?? String(error) }));
};

async function load({ id, dtype, bytes }) {
    await student?.model.dispose();
    const done = {};
    const progress_callback = ({ status, file, loaded }) => {
        if (status !== 'progress' || !/\.onnx/.test(file)) return;
        done[file] = loaded;
        postMessage({ id, kind: 'progress', share: Object.values(done).reduce((sum, value) => sum + value) / bytes });
    };
    // Apart, since a processor brings its tokenizer only where preprocessor_config.json names the processor's class.
    const extract = await AutoFeatureExtractor.from_pretrained('model');
    const tokenizer = await AutoTokenizer.from_pretrained('model');
    const model = await WhisperForConditionalGeneration.from_pretrained('model', { dtype, device: 'wasm', progress_callback });
    student = { extract, tokenizer, model };
    // The first run sets up memory; what is shown later is the time of a warm one.
    await model.generate({ inputs: (await extract(new Float32Array(1600))).input_features, max_new_tokens: 1 });
    postMessage({ id, kind: 'done', threads: wasm.numThreads });
}

/** Samples of at most a window at 16 kHz to text, which is sent on as it grows. Times in ms. */
async function transcribe({ id, samples, language }) {
    const { extract, tokenizer, model } = student;
    const { is_multilingual, eos_token_id } = model.generation_config;
    const started = performance.now();
    let [first, tokens, text] = [null, 0, ''];
    const streamer = new TextStreamer(tokenizer, {
        skip_prompt: true,
        token_callback_function: () => {
            first ??= performance.now() - started;
            tokens += 1;
        },
        callback_function: (part) => {
            text += part;
            postMessage({ id, kind: 'text', text });
        },
    });
    const { input_features } = await extract(samples);
    const prompt = is_multilingual ? { language, task: 'transcribe' } : {};
    const made = await model.generate({ inputs: input_features, streamer, ...prompt });
    const total = performance.now() - started;
    // In Whisper's vocabularies all special tokens and timestamps stand at or above the end of text.
    const [end] = [eos_token_id].flat();
    const said = made.tolist()[0].map(Number).filter((token) => token < end);
    text = said.length ? tokenizer.decode(said).trim() : '';
    postMessage({ id, kind: 'done', text, tokens, first, total });
}
