// Try a model: speak, choose a recording or drop one on the page.
import { cut, decode, Microphone, outline, RATE, silent } from './audio.js';
import { Student } from './student.js';

const REFRESH = 250; // ms between two transcriptions of a recording that is still growing
const $ = (selector, within = document) => within.querySelector(selector);

$('#alert').hidden = true;
$('#alert').classList.remove('late');
addEventListener('error', (event) => showError(event.message));
addEventListener('unhandledrejection', (event) => showError(event.reason?.message ?? event.reason));

const about = await (await fetch('page.json')).json();
if (about.offline) await keepCopy();
const student = new Student();
let queue = Promise.resolve(); // recordings are transcribed one after the other
let microphone = null;
start();

function start() {
    document.title = `${about.name}: sottovoce`;
    $('#name').textContent = about.name;
    for (const [index, { name, mb }] of about.precisions.entries()) {
        const label = element('label', {}, element('input', { type: 'radio', name: 'precision', value: name, checked: !index }));
        label.append(`${name} `, element('small', { textContent: `${mb.toPrecision(2)} MB` }));
        $('#precisions').append(label);
    }
    const requested = new URLSearchParams(location.search).get('precision');
    const chosen = $(`input[value="${CSS.escape(requested ?? '')}"]`) ?? $('#precisions input');
    chosen.checked = true;
    const english = about.languages.includes('en') ? 'en' : about.languages[0];
    const names = new Intl.DisplayNames(['en'], { type: 'language' });
    for (const code of about.languages) $('#language select').append(new Option(names.of(code), code, false, code === english));
    $('#language').hidden = about.languages.length < 2;
    $('#precisions').addEventListener('change', () => enqueue(load));
    $('#files').addEventListener('change', ({ target }) => {
        accept(target.files);
        target.value = ''; // so that the same file can be chosen again
    });
    $('#record').addEventListener('click', () => (microphone ? microphone.stop() : enqueue(transcribeMicrophone)));
    for (const kind of ['dragenter', 'dragover', 'dragleave', 'drop']) {
        addEventListener(kind, (event) => {
            event.preventDefault();
            document.body.classList.toggle('over', kind === 'dragenter' || kind === 'dragover');
            if (kind === 'drop') accept(event.dataTransfer.files);
        });
    }
    enqueue(load);
}

/** Let a service worker keep a copy of the page. The page reloads once, so that every file goes through the worker. */
async function keepCopy() {
    if (!navigator.serviceWorker) return;
    if (navigator.serviceWorker.controller) {
        fetch('recorder.js'); // the page itself needs it only when the microphone is first used
        return;
    }
    await navigator.serviceWorker.register('offline.js');
    await navigator.serviceWorker.ready;
    if (sessionStorage.getItem('kept')) return; // do not reload for ever in a browser where the worker does not take control
    sessionStorage.setItem('kept', 'yes');
    location.reload();
    await new Promise(() => {});
}

function enqueue(task) {
    queue = queue.then(task).catch((error) => showError(error.message));
    return queue;
}

function accept(files) {
    for (const file of files) enqueue(() => transcribeFile(file));
}

async function load() {
    const precision = about.precisions.find(({ name }) => name === $('#precisions input:checked').value);
    ready(false, `Loading ${precision.name}`);
    const { threads } = await student.load(precision, (share) => { $('#progress').value = share; });
    $('#progress').hidden = true;
    ready(true, 'Ready');
    const cores = crossOriginIsolated ? `${threads} thread${threads > 1 ? 's' : ''}` : '1 thread';
    $('#facts').textContent = `${precision.name} weights in ONNX Runtime (wasm, ${cores}), windows of ${about.window / RATE} s. `
        + 'Made with sottovoce.';
}

function ready(is, text) {
    $('#state').textContent = text;
    $('#state').classList.toggle('ready', is);
    if (!is) Object.assign($('#progress'), { hidden: false, value: 0 });
    for (const item of document.querySelectorAll('#record, #files')) item.disabled = !is;
}

/** Transcribe an audio file window by window. Windows end where it is quiet. */
async function transcribeFile(file) {
    $('#alert').hidden = true;
    const samples = await decode(file);
    const clip = new Clip(file.name, samples);
    clip.play(file);
    const done = { parts: [], tokens: 0, first: null, total: 0 };
    $('#record').disabled = true;
    try {
        for (let start = 0; start < samples.length;) {
            const length = cut(samples.subarray(start), about.window);
            const result = await student.transcribe(samples.slice(start, start + length), language(),
                (text) => clip.showText(done.parts, text));
            start += length;
            done.parts.push(result.text);
            done.first ??= result.first;
            done.tokens += result.tokens;
            done.total += result.total;
            clip.showFigures({ ...done, seconds: start / RATE });
        }
    } finally {
        $('#record').disabled = false;
        clip.finish(done.parts);
    }
}

/**
 * Transcribe the microphone: again and again from the beginning of the window, as the recording grows. Once it is longer
 * than the window, the text of its first part is final.
 */
async function transcribeMicrophone() {
    $('#alert').hidden = true;
    $('#record').disabled = true;
    try {
        microphone = await Microphone.open();
    } finally {
        $('#record').disabled = false;
    }
    showRecording(true);
    const clip = new Clip('Microphone', new Float32Array(1));
    const parts = [];
    let growing = '';
    try {
        for (let last = false; !last;) {
            await new Promise((resolve) => { setTimeout(resolve, REFRESH); });
            last = !microphone.on;
            let samples = await microphone.samples();
            clip.draw(samples);
            while (samples.length > about.window) {
                const length = cut(samples, about.window);
                const piece = samples.slice(0, length);
                if (!silent(piece)) parts.push((await student.transcribe(piece, language())).text);
                microphone.drop(length);
                samples = samples.slice(length);
            }
            growing = '';
            if (silent(samples)) continue;
            const result = await student.transcribe(samples, language());
            growing = result.text;
            clip.showText(parts, growing);
            clip.showFigures({ ...result, seconds: samples.length / RATE });
        }
    } finally {
        microphone.stop();
        microphone = null;
        showRecording(false);
        clip.finish([...parts, growing]);
    }
}

function showRecording(is) {
    $('#record').classList.toggle('on', is);
    $('#record span').textContent = is ? 'Stop' : 'Speak';
    $('#files').disabled = is;
    for (const item of document.querySelectorAll('#precisions input')) item.disabled = is;
}

function language() {
    return $('#language select').value;
}

/** One recording on the page. The newest is at the top. */
class Clip {
    constructor(name, samples) {
        this.root = $('#clip').content.firstElementChild.cloneNode(true);
        this.root.classList.add('busy');
        $('h2', this.root).textContent = name;
        this.draw(samples);
        $('#clips').prepend(this.root);
    }

    draw(samples) {
        $('.wave path', this.root).setAttribute('d', outline(samples));
    }

    play(file) {
        Object.assign($('audio', this.root), { src: URL.createObjectURL(file), hidden: false });
    }

    /** Show the text so far; `growing` is the part that may still change. */
    showText(parts, growing) {
        $('.text', this.root).replaceChildren(`${join(parts)} `, element('span', { className: 'open', textContent: growing }));
    }

    finish(parts) {
        this.root.classList.remove('busy');
        const text = join(parts);
        $('.text', this.root).replaceChildren(text || element('span', { className: 'none', textContent: 'No words were recognised.' }));
        const copy = $('.copy', this.root);
        copy.hidden = !text || !navigator.clipboard;
        copy.addEventListener('click', async () => {
            await navigator.clipboard.writeText(text);
            copy.textContent = 'Copied';
        });
    }

    showFigures({ first, total, tokens, seconds }) {
        const factor = total / 1000 / seconds;
        $('dl', this.root).replaceChildren(...[
            ['time to first token', `${first.toFixed(0)} ms`, ''],
            ['real-time factor', factor.toPrecision(2), ` ${(1 / factor).toPrecision(2)} × speech`],
            ['total time', `${total.toFixed(0)} ms`, ` ${tokens} tokens`],
            ['audio', `${seconds.toFixed(1)} s`, ''],
        ].map(([name, value, note]) => element('div', {}, element('dt', { textContent: name }),
            element('dd', {}, value, element('small', { textContent: note })))));
    }
}

function join(parts) {
    return parts.filter(Boolean).join(' ');
}

function element(tag, properties, ...children) {
    const node = Object.assign(document.createElement(tag), properties);
    node.append(...children);
    return node;
}

function showError(message) {
    Object.assign($('#alert'), { textContent: message, hidden: false });
    if (!$('#state').classList.contains('ready')) $('#state').textContent = 'Not loaded';
}
