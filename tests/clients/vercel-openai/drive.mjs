// What does the Vercel AI SDK get through @ai-sdk/openai? One order a line in, one answer a line out.
import { createInterface } from "node:readline";

import { createOpenAI } from "@ai-sdk/openai";
import { AISDKError, generateImage, RetryError } from "ai";
import { Agent } from "undici";

// The SDK has no timeout of its own. What ends its calls is its fetch, which waits 300 seconds for an answer's head, and
// what ends so is tried again: shortened here, so that a test needn't wait for it.
function impatientFetch(seconds) {
  const dispatcher = new Agent({ headersTimeout: seconds * 1000 });
  return (url, options) => fetch(url, { ...options, dispatcher });
}

async function answer({ base_url, key, order, timeout_seconds }) {
  // This provider chooses `response_format` by itself, so it is nothing that one could order.
  const { prompt, model = "dall-e-3", n, size, response_format, ...options } = order;
  const provider = createOpenAI({
    baseURL: `${base_url}/v1`,
    apiKey: key,
    ...(timeout_seconds && { fetch: impatientFetch(timeout_seconds) }),
  });
  try {
    const { images } = await generateImage({
      model: provider.image(model),
      prompt,
      n,
      size,
      providerOptions: { openai: options },
    });
    return { pictures: images.map(({ base64 }) => ({ b64_json: base64 })) };
  } catch (error) {
    if (!AISDKError.isInstance(error)) throw error;
    const last = RetryError.isInstance(error) ? error.lastError : error;
    return { error: { name: error.name, status: last.statusCode ?? null, message: error.message } };
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  console.log(JSON.stringify(await answer(JSON.parse(line))));
}
