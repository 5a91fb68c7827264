// WAV files of 16-bit samples, one channel (RIFF, PCM).

const HEADER_BYTES = 44;
const SAMPLE_BYTES = 2;
const LOUDEST = 32767;

/** The samples, from -1 to 1, `rate` a second, as a file. */
export function encode(samples, rate) {
  const bytes = SAMPLE_BYTES * samples.length;
  const view = new DataView(new ArrayBuffer(HEADER_BYTES + bytes));
  const text = (at, value) => [...value].forEach((letter, index) => view.setUint8(at + index, letter.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, HEADER_BYTES - 8 + bytes, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true); // bytes of the format
  view.setUint16(20, 1, true); // PCM
  view.setUint16(22, 1, true); // channels
  view.setUint32(24, rate, true);
  view.setUint32(28, rate * SAMPLE_BYTES, true); // bytes a second
  view.setUint16(32, SAMPLE_BYTES, true); // bytes of a sample of all channels
  view.setUint16(34, 8 * SAMPLE_BYTES, true);
  text(36, "data");
  view.setUint32(40, bytes, true);
  samples.forEach((sample, index) => {
    const value = Math.round(LOUDEST * Math.max(-1, Math.min(1, sample)));
    view.setInt16(HEADER_BYTES + SAMPLE_BYTES * index, value, true);
  });
  return new Blob([view.buffer], { type: "audio/wav" });
}
