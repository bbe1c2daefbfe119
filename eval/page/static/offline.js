// Service worker of a static page. It keeps what was fetched, for when there is no network, and adds the two headers
// without which a page has no wasm threads, since many web hosts let nobody set headers.
const KEPT = `sottovoce ${self.registration.scope}`;
const HEADERS = {
    'Cross-Origin-Opener-Policy': 'same-origin',
    'Cross-Origin-Embedder-Policy': 'require-corp',
};

self.addEventListener('install', () => self.skipWaiting());
self.addEventListener('activate', (event) => event.waitUntil(self.clients.claim()));
self.addEventListener('fetch', (event) => {
    if (event.request.method === 'GET' && event.request.url.startsWith(self.registration.scope)) {
        event.respondWith(answer(event));
    }
});

/** The newest there is: from the network, or else what it said last. */
async function answer(event) {
    const kept = await caches.open(KEPT);
    try {
        const response = await fetch(event.request);
        if (response.ok) event.waitUntil(kept.put(event.request, response.clone()));
        return isolated(response);
    } catch (error) {
        const last = await kept.match(event.request, { ignoreSearch: true });
        if (!last) throw error;
        return isolated(last);
    }
}

function isolated(response) {
    const headers = new Headers(response.headers);
    for (const [name, value] of Object.entries(HEADERS)) headers.set(name, value);
    return new Response(response.body, { status: response.status, statusText: response.statusText, headers });
}
