// Try a student: speak, choose a recording or drop one.
import { cut, decode, Microphone, outline, RATE, silent } from './audio.js';
import { Student } from './student.js';

const REFRESH = 250; // ms between two readings of what is being said
const $ = (selector, within = document) => within.querySelector(selector);

$('#alert').hidden = true;
$('#alert').classList.remove('late');
addEventListener('error', (event) => complain(event.message));
addEventListener('unhandledrejection', (event) => complain(event.reason?.message ?? event.reason));

const about = await (await fetch('page.json')).json();
if (about.offline) await keep();
const student = new Student();
let queue = Promise.resolve(); // one clip after the other
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
    const asked = new URLSearchParams(location.search).get('precision');
    const chosen = $(`input[value="${CSS.escape(asked ?? '')}"]`) ?? $('#precisions input');
    chosen.checked = true;
    const english = about.languages.includes('en') ? 'en' : about.languages[0];
    const names = new Intl.DisplayNames(['en'], { type: 'language' });
    for (const code of about.languages) $('#language select').append(new Option(names.of(code), code, false, code === english));
    $('#language').hidden = about.languages.length < 2;
    $('#precisions').addEventListener('change', () => enqueue(load));
    $('#files').addEventListener('change', ({ target }) => {
        take(target.files);
        target.value = ''; // the same file may be chosen again
    });
    $('#record').addEventListener('click', () => (microphone ? microphone.stop() : enqueue(listen)));
    for (const kind of ['dragenter', 'dragover', 'dragleave', 'drop']) {
        addEventListener(kind, (event) => {
            event.preventDefault();
            document.body.classList.toggle('over', kind === 'dragenter' || kind === 'dragover');
            if (kind === 'drop') take(event.dataTransfer.files);
        });
    }
    enqueue(load);
}

/** Have a service worker keep a copy of the page; once it does, everything is fetched again, through it. */
async function keep() {
    if (!navigator.serviceWorker) return;
    if (navigator.serviceWorker.controller) {
        fetch('recorder.js'); // otherwise asked for only when somebody first speaks
        return;
    }
    await navigator.serviceWorker.register('offline.js');
    await navigator.serviceWorker.ready;
    if (sessionStorage.getItem('kept')) return; // a browser that lets none control a page must not reload for ever
    sessionStorage.setItem('kept', 'yes');
    location.reload();
    await new Promise(() => {});
}

function enqueue(task) {
    queue = queue.then(task).catch((error) => complain(error.message));
    return queue;
}

function take(files) {
    for (const file of files) enqueue(() => read(file));
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

/** A recording, window by window, each cut where it is quiet. */
async function read(file) {
    $('#alert').hidden = true;
    const samples = await decode(file);
    const clip = new Clip(file.name, samples);
    clip.play(file);
    const done = { parts: [], tokens: 0, first: null, total: 0 };
    $('#record').disabled = true;
    try {
        for (let start = 0; start < samples.length;) {
            const length = cut(samples.subarray(start), about.window);
            const said = await student.transcribe(samples.slice(start, start + length), language(),
                (text) => clip.say(done.parts, text));
            start += length;
            done.parts.push(said.text);
            done.first ??= said.first;
            done.tokens += said.tokens;
            done.total += said.total;
            clip.measure({ ...done, seconds: start / RATE });
        }
    } finally {
        $('#record').disabled = false;
        clip.finish(done.parts);
    }
}

/** What is being said, read anew as it grows; once it outgrows the window its older part stands. */
async function listen() {
    $('#alert').hidden = true;
    $('#record').disabled = true;
    try {
        microphone = await Microphone.open();
    } finally {
        $('#record').disabled = false;
    }
    recording(true);
    const clip = new Clip('Microphone', new Float32Array(1));
    const parts = [];
    let open = '';
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
            open = '';
            if (silent(samples)) continue;
            const said = await student.transcribe(samples, language());
            open = said.text;
            clip.say(parts, open);
            clip.measure({ ...said, seconds: samples.length / RATE });
        }
    } finally {
        microphone.stop();
        microphone = null;
        recording(false);
        clip.finish([...parts, open]);
    }
}

function recording(is) {
    $('#record').classList.toggle('on', is);
    $('#record span').textContent = is ? 'Stop' : 'Speak';
    $('#files').disabled = is;
    for (const item of document.querySelectorAll('#precisions input')) item.disabled = is;
}

function language() {
    return $('#language select').value;
}

/** One recording on the page, the newest on top. */
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

    say(parts, open) {
        $('.text', this.root).replaceChildren(`${join(parts)} `, element('span', { className: 'open', textContent: open }));
    }

    finish(parts) {
        this.root.classList.remove('busy');
        const text = join(parts);
        $('.text', this.root).replaceChildren(text || element('span', { className: 'none', textContent: 'No words were heard.' }));
        const copy = $('.copy', this.root);
        copy.hidden = !text || !navigator.clipboard;
        copy.addEventListener('click', async () => {
            await navigator.clipboard.writeText(text);
            copy.textContent = 'Copied';
        });
    }

    measure({ first, total, tokens, seconds }) {
        const factor = total / 1000 / seconds;
        $('dl', this.root).replaceChildren(...[
            ['time to first token', `${first.toFixed(0)} ms`, ''],
            ['real-time factor', factor.toPrecision(2), ` ${(1 / factor).toPrecision(2)} × speech`],
            ['in all', `${total.toFixed(0)} ms`, ` ${tokens} tokens`],
            ['audio', `${seconds.toFixed(1)} s`, ''],
        ].map(([name, value, beside]) => element('div', {}, element('dt', { textContent: name }),
            element('dd', {}, value, element('small', { textContent: beside })))));
    }
}

function join(parts) {
    return parts.filter(Boolean).join(' ');
}

function element(tag, properties, ...children) {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
}

function complain(message) {
    Object.assign($('#alert'), { textContent: message, hidden: false });
    if (!$('#state').classList.contains('ready')) $('#state').textContent = 'Not loaded';
}
