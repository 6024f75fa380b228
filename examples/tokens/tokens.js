// The page: begins an answer, and follows the one whose id is in the address.
//
// What holds: the text is complete and each token is in it once, however often the connection breaks, for EventSource goes on after
// the last id that it saw. A page that is loaded anew reads the topic from its earliest event, then live: the same URL does both.
// When the topic is closed the stream is over, and nothing asks again.

const el = (id) => document.getElementById(id);
const { topics } = await (await fetch('stream')).json();
let source = null;

/** The books; the tests read them. */
const books = { state: 'idle', text: '', ids: [], opens: 0, gaps: 0, interrupted: false, source: null };
window.tokens = books;

function follow() {
  source?.close();
  const id = location.hash.slice(1);
  Object.assign(books, { text: '', ids: [], opens: 0, gaps: 0, interrupted: false });
  el('answer').replaceChildren();
  el('trouble').textContent = '';
  if (!/^[0-9a-f]+$/.test(id)) {
    show('idle');
    return;
  }

  // A reconnect asks for the same URL, with the last id in the header Last-Event-ID; and the header wins over from=earliest.
  const url = `${topics}/answers.${id}?from=earliest`;
  el('url').textContent = url;
  source = books.source = new EventSource(url);
  show('connecting');
  source.onopen = () => {
    books.opens += 1;
    show('writing');
  };
  source.onmessage = (e) => {
    books.text += e.data;
    books.ids.push(Number(e.lastEventId));
    el('answer').append(e.data);
    tally();
  };
  const over = () => show(books.interrupted ? 'interrupted' : 'complete');
  source.addEventListener('interrupted', (e) => {
    books.interrupted = true;
    el('trouble').textContent = `The answer was interrupted: ${e.data}. Ask again.`;
  });
  source.addEventListener('tidelog.gap', () => {
    books.gaps += 1;
    el('trouble').textContent = 'A part of this answer is no longer in the log.';
  });
  source.addEventListener('tidelog.closed', () => {
    source.close();
    over();
  });
  source.onerror = () => {
    if (source.readyState === EventSource.CONNECTING) show('reconnecting'); // by itself
    // Whoever missed `tidelog.closed`, because the connection broke just before it, comes back and is answered 204: nothing more to
    // come. EventSource stops then. It stops too when it is refused from the first, and does not say which.
    else if (books.opens > 0) over();
    else show('refused');
  };
}

el('ask').addEventListener('submit', async (e) => {
  e.preventDefault();
  el('trouble').textContent = '';
  try {
    const answer = await fetch('answers', { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: '{}' });
    if (!answer.ok) throw new Error(await answer.text());
    location.hash = (await answer.json()).id;
  } catch (error) {
    el('trouble').textContent = `Not asked: ${error.message}`;
  }
});
window.addEventListener('hashchange', follow);

function show(state) {
  books.state = state;
  el('state').dataset.state = state;
  el('state').lastElementChild.textContent = state;
  el('answer').setAttribute('aria-busy', String(state === 'writing')); // read out when it is complete, not word by word
  tally();
}

function tally() {
  el('count').textContent = books.ids.length.toLocaleString('en');
  el('last').textContent = books.ids.at(-1)?.toLocaleString('en') ?? '–';
  el('opens').textContent = books.opens.toLocaleString('en');
}

follow();
