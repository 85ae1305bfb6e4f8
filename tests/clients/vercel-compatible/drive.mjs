// What does the Vercel AI SDK get through @ai-sdk/openai-compatible? One order a line in, one answer a line out.
import { createInterface } from "node:readline";

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { AISDKError, generateImage, RetryError } from "ai";
import { Agent } from "undici";

// The SDK has no timeout of its own. What ends its calls is its fetch, which waits 300 seconds for an answer's head, and
// what ends so is tried again: shortened here, so that a test needn't wait for it.
function impatientFetch(seconds) {
  const dispatcher = new Agent({ headersTimeout: seconds * 1000 });
  return (url, options) => fetch(url, { ...options, dispatcher });
}

async function answer({ base_url, key, order, timeout_seconds }) {
  const { prompt, model = "dall-e-3", n, size, ...options } = order;
  const provider = createOpenAICompatible({
    name: "imagekeep",
    baseURL: `${base_url}/v1`,
    apiKey: key,
    ...(timeout_seconds && { fetch: impatientFetch(timeout_seconds) }),
  });
  try {
    // Where a URL comes back, the SDK fetches the picture itself.
    const { images } = await generateImage({
      model: provider.imageModel(model),
      prompt,
      n,
      size,
      providerOptions: { imagekeep: options },
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
