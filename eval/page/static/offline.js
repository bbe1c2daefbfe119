// Service worker of a static page. It keeps a copy of every file that was fetched, for when there is no network. It also
// adds the two headers that a page needs for WebAssembly threads, because many web hosts do not let users set headers.
const CACHE = `sottovoce ${self.registration.scope}`;
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

/** Return the newest version of a file: from the network, or if that fails the copy. */
async function answer(event) {
    const cache = await caches.open(CACHE);
    try {
        const response = await fetch(event.request);
        if (response.ok) event.waitUntil(cache.put(event.request, response.clone()));
        return isolated(response);
    } catch (error) {
        const copy = await cache.match(event.request, { ignoreSearch: true });
        if (!copy) throw error;
        return isolated(copy);
    }
}

/** Return the response with the headers that isolate the page from other origins. */
function isolated(response) {
    const headers = new Headers(response.headers);
    for (const [name, value] of Object.entries(HEADERS)) headers.set(name, value);
    return new Response(response.body, { status: response.status, statusText: response.statusText, headers });
}
