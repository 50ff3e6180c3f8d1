// The live page. The router renders every section; this module puts what has changed into the page, opens the plan of
// a verb in a dialog, and says when the stream has stopped. It knows nothing about the migration.

const SILENT_MILLISECONDS = 5000
const RETRY_MILLISECONDS = 3000
// A change asks the router up to three times, 10 seconds each.
const ANSWER_MILLISECONDS = 40_000

const main = document.getElementById("main")
const link = document.getElementById("link")
const linkText = document.getElementById("link-text")
const dialog = document.getElementById("plan")
let heardAt = Date.now()
let stream

const clock = (time) => new Date(time).toLocaleTimeString([], { hour12: false })

// --- The stream ---

function show(state, text) {
  if (link.dataset.state === state && linkText.textContent === text) return
  if (link.dataset.state !== state && state !== "waiting") announce(text)
  link.dataset.state = state
  linkText.textContent = text
  document.body.classList.toggle("stale", state === "stale")
}

function heard() {
  heardAt = Date.now()
  show("live", "Live")
}

function connect() {
  stream = new EventSource(main.dataset.events)
  stream.addEventListener("section", (event) => {
    const { id, html } = JSON.parse(event.data)
    update(document.getElementById(id), html)
    heard()
  })
  stream.addEventListener("tick", heard)
  stream.addEventListener("ended", (event) => {
    const { text, signed_out } = JSON.parse(event.data)
    show("stale", `Stale since ${clock(heardAt)}: ${text}`)
    if (signed_out) signedOut()
  })
  // A stream that breaks is opened again by the browser. One that is refused is not.
  stream.addEventListener("error", () => {
    show("stale", `Stale since ${clock(heardAt)}`)
    if (stream.readyState === EventSource.CLOSED) setTimeout(again, RETRY_MILLISECONDS)
  })
}

async function again() {
  if (document.hidden) return
  try {
    const answer = await fetch(main.dataset.events, { method: "HEAD", signal: AbortSignal.timeout(ANSWER_MILLISECONDS) })
    if (answer.status === 401) return signedOut()
  } catch {
    // The router is away: the next attempt shows whether it is back.
  }
  stream.close()
  connect()
}

function signedOut() {
  stream.close()
  const to = document.createElement("a")
  to.href = main.dataset.events.replace(/events$/, "sign-in")
  to.textContent = "Sign in again"
  linkText.textContent = `Signed out, stale since ${clock(heardAt)}. `
  linkText.append(to)
  link.dataset.state = "stale"
  document.body.classList.add("stale")
  announce("Signed out")
}

setInterval(() => {
  if (link.dataset.state !== "stale" && Date.now() - heardAt > SILENT_MILLISECONDS) {
    show("stale", `Stale since ${clock(heardAt)}`)
  }
}, 1000)

// A browser opens six connections to a router, for all its tabs: those that nobody sees leave them to the others.
document.addEventListener("visibilitychange", () => {
  if (document.hidden) stream?.close()
  else if (stream === undefined || stream.readyState === EventSource.CLOSED) connect()
})

// --- Updates, which keep focus, open details and typed values ---

function update(section, html) {
  // A router of a newer release may have more sections than this page.
  if (section === null) return
  const template = document.createElement("template")
  template.innerHTML = html
  const fresh = template.content.querySelector("section")
  const before = told(section)
  morph(section, fresh)
  for (const text of told(section)) if (!before.has(text)) announce(text)
}

const told = (section) => new Set([...section.querySelectorAll("[data-announce]")].map((one) => one.textContent.trim()))

function announce(text) {
  const line = document.createElement("p")
  line.textContent = text
  document.getElementById("announce").replaceChildren(line)
}

function morph(old, fresh) {
  if (old.isEqualNode(fresh)) return
  for (const { name, value } of [...fresh.attributes]) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value)
  }
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name) && name !== "open") old.removeAttribute(name)
  }
  // What an operator types or chooses is theirs until they send it.
  if (old.matches("select")) return offer(old, fresh)
  if (old.matches("input:not([type=hidden]), textarea")) return
  const wanted = [...fresh.childNodes]
  wanted.forEach((next, index) => {
    const now = old.childNodes[index]
    if (now === undefined) return old.append(next)
    if (!alike(now, next)) return now.replaceWith(next)
    if (now.nodeType === Node.ELEMENT_NODE) return morph(now, next)
    if (now.nodeValue !== next.nodeValue) now.nodeValue = next.nodeValue
  })
  while (old.childNodes.length > wanted.length) old.lastChild.remove()
}

// The new options, and the operator's choice if it is still among them.
function offer(old, fresh) {
  const first = (select) => ([...select.options].find((one) => one.defaultSelected) ?? select.options[0])?.value
  const chosen = old.value === first(old) ? undefined : old.value
  const options = [...fresh.options]
  if (first(old) === first(fresh) && String([...old.options].map((one) => one.value)) === String(options.map((one) => one.value))) return
  old.replaceChildren(...options)
  if (options.some((one) => one.value === chosen)) old.value = chosen
}

const alike = (one, other) => one.nodeName === other.nodeName && (one.id ?? "") === (other.id ?? "")

// --- Verbs: first the plan, then the change ---

async function send(form) {
  const answer = await fetch(form.action, {
    method: "POST",
    headers: { "content-type": "application/x-www-form-urlencoded" },
    body: new URLSearchParams(new FormData(form)),
    signal: AbortSignal.timeout(ANSWER_MILLISECONDS),
  })
  return { ok: answer.ok, html: await answer.text() }
}

let opener

document.addEventListener("submit", async (event) => {
  const form = event.target
  if (!form.matches(".verb, #plan form")) return
  event.preventDefault()
  const button = event.submitter
  button.disabled = true
  if (!dialog.contains(button)) opener = button
  let html
  try {
    const answer = await send(form)
    html = answer.html
    if (answer.ok && !form.matches(".verb")) opener?.form?.reset()
  } catch {
    html = '<h2 id="plan-title">No answer</h2><p>The router did not answer, so it is not known whether anything changed. Look at the journal.</p><div class="buttons"><button type="button" data-close>Close</button></div>'
  }
  button.disabled = false
  const template = document.createElement("template")
  template.innerHTML = html
  const part = template.content.querySelector("main")
  dialog.replaceChildren(...(part ?? template.content).childNodes)
  if (!dialog.open) dialog.showModal()
  dialog.querySelector("input:not([type=hidden]), [data-close]")?.focus()
})

dialog.addEventListener("click", (event) => {
  if (event.target.closest("[data-close]")) dialog.close()
})
dialog.addEventListener("close", () => opener?.isConnected && opener.focus())

if (!document.hidden) connect()
