// Runs the model in a thread of its own, so that the page stays responsive meanwhile.
import { AutoFeatureExtractor, AutoTokenizer, env, TextStreamer, WhisperForConditionalGeneration } from './packages/transformers.js';

env.allowRemoteModels = false;
env.allowLocalModels = true;
// A path, because transformers.js finds no tokenizer at a complete address.
env.localModelPath = new URL('.', import.meta.url).pathname;
// transformers.js would cache files by address for ever, but another model may be served at the same address later.
env.useBrowserCache = false;
env.useWasmCache = false;
const { wasm } = env.backends.onnx;
wasm.wasmPaths = { wasm: new URL('packages/ort.wasm', import.meta.url).href };

let student = null;
let queue = Promise.resolve(); // requests are answered one after the other
self.onmessage = ({ data }) => {
    queue = queue.then(() => (data.kind === 'load' ? load(data) : transcribe(data)))
        .catch((error) => postMessage({ id: data.id, kind: 'error', message: error?.message ?? String(error) }));
};

/** Load the weights of one precision, in place of those loaded before. `bytes` is their size. */
async function load({ id, dtype, bytes }) {
    await student?.model.dispose();
    const loadedBytes = {}; // by file
    const progress_callback = ({ status, file, loaded }) => {
        if (status !== 'progress' || !/\.onnx/.test(file)) return;
        loadedBytes[file] = loaded;
        postMessage({ id, kind: 'progress', share: Object.values(loadedBytes).reduce((sum, value) => sum + value) / bytes });
    };
    // Two classes instead of AutoProcessor, which loads a tokenizer only if preprocessor_config.json names a processor class.
    const extract = await AutoFeatureExtractor.from_pretrained('model');
    const tokenizer = await AutoTokenizer.from_pretrained('model');
    const model = await WhisperForConditionalGeneration.from_pretrained('model', { dtype, device: 'wasm', progress_callback });
    student = { extract, tokenizer, model };
    // The first run allocates memory. It is done now, so that the times shown later are those of a warm model.
    await model.generate({ inputs: (await extract(new Float32Array(1600))).input_features, max_new_tokens: 1 });
    postMessage({ id, kind: 'done', threads: wasm.numThreads });
}

/** Transcribe at most a window of 16 kHz samples, and post the text as it grows. Times are in ms. */
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
    const output = await model.generate({ inputs: input_features, streamer, ...prompt });
    const total = performance.now() - started;
    // In Whisper's vocabularies the end-of-text token is the first special token; timestamps come after it.
    const [end] = [eos_token_id].flat();
    const textTokens = output.tolist()[0].map(Number).filter((token) => token < end);
    text = textTokens.length ? tokenizer.decode(textTokens).trim() : '';
    postMessage({ id, kind: 'done', text, tokens, first, total });
}
