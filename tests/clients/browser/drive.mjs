// What does a page of another origin get in a real Chromium? One order a line in, one answer a line out.
//
// Beside what every drive takes, a line may name the page's `origin` and an `order_id`, have it order `with_sdk` instead
// of by `fetch`, or name a `picture` to show instead of an order. Beside what every drive answers, `seen` has what the
// page could read and show. With `--version` it says which browser it is.
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

import puppeteer from "puppeteer-core";

import { chromiumPath } from "./chromium.mjs";

const HOME = "http://gallery.example";

// The pages' own server. The browser is told that every host of `.example` is it, and finds it at this machine's own
// address, as it finds the service: what stands between public pages and private addresses is not what is looked at.
const pages = createServer(async ({ url }, answer) => {
  if (!url.startsWith("/node_modules/")) answer.setHeader("content-type", "text/html").end("<title>a gallery</title>");
  else answer.setHeader("content-type", "text/javascript").end(await readFile(new URL(`.${url}`, import.meta.url)));
});
await new Promise((listening) => pages.listen(0, "127.0.0.1", listening));

const browser = await puppeteer.launch({
  executablePath: await chromiumPath(),
  args: [
    // It opens no pages but ours, and its sandbox refuses to be started by root, as in most containers.
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--no-proxy-server",
    `--host-resolver-rules=MAP *.example 127.0.0.1:${pages.address().port}`,
  ],
});

async function opened(origin) {
  const page = await browser.newPage();
  await page.goto(`${origin}/`);
  await page.addScriptTag({ path: fileURLToPath(new URL("order.js", import.meta.url)) });
  return page;
}

// Runs in the page, where order.js has put `order`, `show` and `save`.
async function orderInPage(baseUrl, key, wanted, seconds, orderId) {
  const signal = seconds ? AbortSignal.timeout(seconds * 1000) : undefined;
  let answer;
  try {
    answer = await order(baseUrl, key, wanted, { orderId, signal });
  } catch (error) {
    return { error: { name: error.name, status: null, message: error.message } };
  }
  const { status, headers, pictures, error } = answer;
  if (error) return { error: { name: error.code, status, message: error.message }, seen: { headers } };
  return { pictures: pictures.map(({ url, b64_json }) => (url ? { url } : { b64_json })), seen: { headers } };
}

// The same, with an SDK as it is.
async function orderInPageWithSdk(baseUrl, key, wanted, seconds) {
  const { OpenAI } = await import("/node_modules/openai/index.mjs");
  const client = new OpenAI({
    baseURL: `${baseUrl}/v1`,
    apiKey: key,
    dangerouslyAllowBrowser: true,
    ...(seconds && { timeout: seconds * 1000 }),
  });
  try {
    return { pictures: (await client.images.generate(wanted)).data.map(({ url }) => ({ url })) };
  } catch (error) {
    return { error: { name: error.code, status: error.status ?? null, message: error.message } };
  }
}

// The same: what it could show, and what it could save after that, when <img> had put the picture into the browser's
// cache, where an answer without CORS headers would stay.
async function showInPage(pictures) {
  const shown = [];
  const saved = [];
  for (const picture of pictures) {
    const { naturalWidth, naturalHeight } = await show(picture);
    shown.push(`${naturalWidth}x${naturalHeight}`);
    if (picture.url) saved.push((await save(picture.url)).type);
  }
  return { shown, saved };
}

async function answer({ base_url, key, order, order_id, timeout_seconds, with_sdk, picture, origin = HOME }) {
  const page = await opened(origin);
  const inPage = with_sdk ? orderInPageWithSdk : orderInPage;
  const told = picture
    ? { pictures: [picture] }
    : await page.evaluate(inPage, base_url, key, order, timeout_seconds, order_id);
  const looked = told.pictures && (await page.evaluate(showInPage, told.pictures));
  await page.close();
  return { ...told, seen: { ...told.seen, ...looked } };
}

if (process.argv.includes("--version")) console.log(await browser.version());
else {
  for await (const line of createInterface({ input: process.stdin })) {
    console.log(JSON.stringify(await answer(JSON.parse(line))));
  }
}
await browser.close();
pages.close();
