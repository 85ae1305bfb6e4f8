async function order(baseUrl, key, wanted, { orderId, signal } = {}) {
  const headers = { authorization: `Bearer ${key}`, "content-type": "application/json" };
  if (orderId) headers["idempotency-key"] = orderId;
  const body = JSON.stringify(wanted);
  const answer = await fetch(`${baseUrl}/v1/images/generations`, { method: "POST", headers, body, signal });
  const { data, error } = await answer.json();
  return { status: answer.status, headers: Object.fromEntries(answer.headers), pictures: data, error };
}

async function show({ url, b64_json }) {
  const image = new Image();
  image.src = url ?? `data:image/png;base64,${b64_json}`;
  document.body.append(image);
  await image.decode();
  return image;
}

async function save(url) {
  const answer = await fetch(url);
  return answer.blob();
}
