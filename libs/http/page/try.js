// Lists the operations of openapi.json, sends what the forms say, and shows the answer and the curl line.

const CHARACTERS = 200_000; // Of a shown answer.

const api = await load();
if (api) show(api);

async function load() {
  const main = document.getElementById("operations");
  try {
    const answer = await fetch("openapi.json");
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    return await answer.json();
  } catch (error) {
    main.replaceChildren(make("p", { role: "alert" }, `openapi.json cannot be read: ${error.message}. Load this page again.`));
    return null;
  } finally {
    main.removeAttribute("aria-busy");
  }
}

function show(api) {
  document.title = api.info.title;
  document.getElementById("title").textContent = api.info.title;
  document.getElementById("about").textContent = api.info.description ?? "";
  const operations = [];
  for (const [path, verbs] of Object.entries(api.paths))
    for (const [verb, operation] of Object.entries(verbs)) operations.push(section(path, verb, operation));
  document.getElementById("operations").replaceChildren(...operations);
}

function section(path, verb, operation) {
  const details = make("details", { class: "operation", id: operation.operationId });
  const summary = make("summary", {},
    make("span", { class: `verb ${verb}` }, verb.toUpperCase()),
    make("span", { class: "path" }, path),
    make("span", { class: "summary" }, operation.summary ?? operation.operationId));
  details.append(summary);
  // A form is made when it is opened first: most never are.
  details.addEventListener("toggle", () => {
    if (details.open && details.children.length === 1) details.append(form(path, verb, operation));
  });
  return details;
}

function form(path, verb, operation) {
  const id = operation.operationId;
  const parameters = (operation.parameters ?? []).map(resolve);
  const fields = parameters.map((parameter) => [parameter, input(`${id}-${parameter.in}-${parameter.name}`, parameter)]);
  const of = (places) => fields.filter(([parameter]) => places.includes(parameter.in)).map(([parameter, control]) => row(parameter, control));
  const content = operation.requestBody?.content?.["application/json"];
  const body = content && make("textarea", { id: `${id}-body`, spellcheck: "false" });
  if (body) body.value = JSON.stringify(content.example ?? {}, null, 2);
  const result = make("div", { "aria-live": "polite" });
  const send = make("button", { type: "submit", class: "send" }, "Send");
  const stop = make("button", { type: "button", disabled: "" }, "Stop");
  const curl = make("pre", { tabindex: "0", "aria-label": "The same request by curl" });
  const headers = of(["header"]);
  const element = make("form", { novalidate: "" },
    make("p", { class: "dim" }, operation.description ?? ""),
    ...of(["path", "query"]),
    headers.length ? make("details", {}, make("summary", {}, `Headers (${headers.length})`), ...headers) : "",
    body ? make("div", {}, make("h3", {}, make("label", { for: body.id }, "Body, JSON")), body) : "",
    make("div", { class: "buttons" }, send, stop),
    make("h3", {}, "curl"), curl, result);
  const streams = "text/event-stream" in (operation.responses?.["200"]?.content ?? {});
  const now = () => request(path, verb, fields, body);
  const refresh = () => { curl.textContent = curlLine(now(), streams); };
  element.addEventListener("input", refresh);
  element.addEventListener("submit", async (event) => {
    event.preventDefault();
    const empty = fields.find(([parameter, control]) => parameter.required && !control.value);
    if (empty) {
      empty[1].focus();
      result.replaceChildren(make("p", { class: "status bad" }, `${empty[0].name} is required`));
      return;
    }
    const abort = new AbortController();
    stop.onclick = () => abort.abort();
    send.disabled = true;
    stop.disabled = false;
    await perform(now(), abort.signal, result);
    send.disabled = false;
    stop.disabled = true;
  });
  refresh();
  return element;
}

function row(parameter, control) {
  const label = make("label", { for: control.id, class: parameter.required ? "required" : "" }, parameter.name);
  const about = make("span", { class: "dim", id: `${control.id}-about` }, parameter.description ?? "");
  control.setAttribute("aria-describedby", about.id);
  return make("div", { class: "field" }, label, control, about);
}

function input(id, parameter) {
  const schema = resolve(parameter.schema ?? {});
  const values = schema.enum ?? (schema.type === "boolean" ? ["true", "false"] : null);
  const first = parameter.required || schema.enum?.includes(parameter.example) ? parameter.example ?? "" : "";
  if (values) {
    const select = make("select", { id }, ...["", ...values].map((value) => make("option", { value }, value)));
    select.value = first;
    return select;
  }
  const control = make("input", { id, autocomplete: "off", spellcheck: "false", autocapitalize: "none" });
  if (parameter.required) control.required = true;
  if (parameter.example !== undefined) control.placeholder = parameter.example;
  control.value = first;
  return control;
}

function request(path, verb, fields, body) {
  const query = new URLSearchParams();
  const headers = {};
  for (const [parameter, control] of fields) {
    const value = control.value;
    if (parameter.in === "path") path = path.replace(`{${parameter.name}}`, encodeURIComponent(value));
    else if (value === "") continue;
    else if (parameter.in === "header") headers[parameter.name] = value;
    else if (resolve(parameter.schema ?? {}).type === "array")
      for (const one of value.split(",")) query.append(parameter.name, one.trim());
    else query.append(parameter.name, value);
  }
  if (body) headers["content-type"] = "application/json";
  const base = new URL(api.servers?.[0]?.url ?? "/", location.href);
  const text = String(query);
  const url = new URL(base.pathname.replace(/\/$/, "") + path + (text ? `?${text}` : ""), base);
  return { url: url.href, method: verb.toUpperCase(), headers, body: body?.value };
}

function curlLine({ url, method, headers, body }, streams) {
  const words = ["curl", streams ? "-iN" : "-i"];
  if (method !== "GET") words.push("-X", method);
  for (const [name, value] of Object.entries(headers)) words.push("-H", quote(`${name}: ${value}`));
  if (body !== undefined) words.push("-d", quote(body));
  return [...words, quote(url)].join(" ");
}

function quote(text) {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}

async function perform(request, signal, result) {
  const began = performance.now();
  const output = make("pre", { tabindex: "0", "aria-label": "Body of the answer" });
  try {
    const { url, ...options } = request;
    const answer = await fetch(url, { ...options, signal, cache: "no-store" });
    const milliseconds = Math.round(performance.now() - began);
    result.replaceChildren(
      make("h3", {}, "Answer"),
      make("p", { class: `status ${answer.ok ? "good" : "bad"}` }, `${answer.status} ${answer.statusText} · ${milliseconds} ms`),
      make("pre", { tabindex: "0", "aria-label": "Headers of the answer" },
        [...answer.headers].map(([name, value]) => `${name}: ${value}`).join("\n")),
      output);
    await read(answer, output);
  } catch (error) {
    const stopped = error.name === "AbortError";
    const text = stopped ? "Stopped." : `There is no answer: ${error.message}`;
    if (output.isConnected) output.append(`\n${text}`);
    else result.replaceChildren(make("p", { class: `status ${stopped ? "" : "bad"}` }, text));
  }
}

// A stream is shown while it comes.
async function read(answer, output) {
  const decoder = new TextDecoder();
  let text = "";
  for (let reader = answer.body?.getReader(); reader; ) {
    const { done, value } = await reader.read();
    if (done) break;
    text = (text + decoder.decode(value, { stream: true })).slice(-CHARACTERS);
    output.textContent = text;
  }
  try {
    output.textContent = JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    // It is no JSON, or only its end: it stays as it is.
  }
}

function resolve(part) {
  if (!part.$ref?.startsWith("#/")) return part;
  const found = part.$ref.slice(2).split("/").reduce((place, name) => place?.[name], api) ?? {};
  return { ...resolve(found), ...Object.fromEntries(Object.entries(part).filter(([name]) => name !== "$ref")) };
}

function make(name, attributes, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) if (value !== undefined) element.setAttribute(key, value);
  element.append(...children);
  return element;
}
