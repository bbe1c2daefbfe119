// Transcribe clips with transformers.js, in an environment of its own: one JSON line a clip.
//
//     node tests/interop/transformers_js_clips.mjs MODEL [--dtype fp32|fp16|int8] WAV...
//
// WAV: 16 kHz mono float32, as nothing here resamples.
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';

const DTYPE = { fp32: 'fp32', fp16: 'fp16', int8: 'q8' };

// The package is looked up from the environment's folder, not from this one.
const require = createRequire(new URL('../../.interop/transformers-js/package.json', import.meta.url));
const { env, pipeline } = require('@huggingface/transformers');

const given = process.argv.slice(2);
const option = given.indexOf('--dtype');
const [, precision] = option < 0 ? [, 'fp32'] : given.splice(option, 2);
const [model, ...audio] = given;

env.allowRemoteModels = false;
env.localModelPath = path.dirname(path.resolve(model));
const transcribe = await pipeline('automatic-speech-recognition', path.basename(path.resolve(model)), {
    dtype: DTYPE[precision],
    session_options: { intraOpNumThreads: 1, interOpNumThreads: 1 },
});
const multilingual = transcribe.model.generation_config.is_multilingual;
const prompt = multilingual ? { language: 'en', task: 'transcribe' } : {};
for (const file of audio) {
    const { text } = await transcribe(samples(file), prompt);
    console.log(JSON.stringify({ audio: file, text: text.trim() }));
}

// The samples of a float32 WAV: chunks of name, length and body after a head of 12 bytes.
function samples(file) {
    const bytes = readFileSync(file);
    let start = 12;
    while (bytes.toString('latin1', start, start + 4) !== 'data') {
        start += 8 + bytes.readUInt32LE(start + 4);
    }
    const end = start + 8 + bytes.readUInt32LE(start + 4);
    return new Float32Array(bytes.buffer.slice(bytes.byteOffset + start + 8, bytes.byteOffset + end));
}
