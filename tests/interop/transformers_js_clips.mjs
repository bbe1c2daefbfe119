// Transcribe clips with transformers.js, in an environment of its own; print one JSON line per clip.
//
//     node tests/interop/transformers_js_clips.mjs MODEL [--dtype fp32|fp16|int8] WAV...
//
// WAV files must be 16 kHz mono float32, because this script does not resample.
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';

const DTYPE = { fp32: 'fp32', fp16: 'fp16', int8: 'q8' };

// Node looks packages up relative to the script, so it is told to look in the environment's folder.
const require = createRequire(new URL('../../.interop/transformers-js/package.json', import.meta.url));
const { env, pipeline } = require('@huggingface/transformers');

const args = process.argv.slice(2);
const option = args.indexOf('--dtype');
const [, precision] = option < 0 ? [, 'fp32'] : args.splice(option, 2);
const [model, ...audio] = args;

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

// Return the samples of a float32 WAV file: a header of 12 bytes, then chunks of name, length and content.
function samples(file) {
    const bytes = readFileSync(file);
    let start = 12;
    while (bytes.toString('latin1', start, start + 4) !== 'data') {
        start += 8 + bytes.readUInt32LE(start + 4);
    }
    const end = start + 8 + bytes.readUInt32LE(start + 4);
    return new Float32Array(bytes.buffer.slice(bytes.byteOffset + start + 8, bytes.byteOffset + end));
}
