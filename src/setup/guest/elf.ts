/** What the guest image needs of ELF (64-bit little-endian, System V gABI chapters 4 and 5): sections, and a smaller kernel. */
interface Section {
  name: string;
  offset: number;
  size: number;
}

interface Segment {
  /** Where its header is in the file. */
  header: number;
  type: number;
  offset: number;
  fileSize: number;
  address: number;
}

const PT_LOAD = 1;
const EHDR_SIZE = 64;
const PHDR_SIZE = 56;
const SHDR_SIZE = 64;
const PAGE = 4096;

/** Fields `key=value` of a kernel module's .modinfo; a key may come more than once. Throws RangeError when it is no module. */
export function readModinfo(module: Buffer): Map<string, string[]> {
  const section = sections(module).find(({ name }) => name === '.modinfo');
  if (section === undefined) throw new RangeError('no .modinfo section');
  const fields = new Map<string, string[]>();
  for (const text of module.toString('utf8', section.offset, section.offset + section.size).split('\0')) {
    const equals = text.indexOf('=');
    if (equals < 1) continue;
    const key = text.slice(0, equals);
    fields.set(key, [...(fields.get(key) ?? []), text.slice(equals + 1)]);
  }
  return fields;
}

function sections(elf: Buffer): Section[] {
  checkHeader(elf);
  const table = Number(elf.readBigUInt64LE(0x28));
  const count = elf.readUInt16LE(0x3c);
  const names = elf.readUInt16LE(0x3e);
  if (table + count * SHDR_SIZE > elf.length || names >= count) throw new RangeError('section table outside the file');
  const at = (index: number) => {
    const header = table + index * SHDR_SIZE;
    const offset = Number(elf.readBigUInt64LE(header + 0x18));
    const size = Number(elf.readBigUInt64LE(header + 0x20));
    const isInFile = elf.readUInt32LE(header + 4) !== 8; // SHT_NOBITS
    if (isInFile && offset + size > elf.length) throw new RangeError(`section ${index} outside the file`);
    return { nameAt: elf.readUInt32LE(header), offset, size };
  };
  const strings = at(names);
  return Array.from({ length: count }, (_, index) => {
    const { nameAt, offset, size } = at(index);
    const start = strings.offset + nameAt;
    const end = elf.indexOf(0, start);
    return { name: elf.toString('latin1', start, Math.max(start, end)), offset, size };
  });
}

/**
 * The same kernel for a VMM: its segments only, close together, without the zeros that end them (a loader fills memory
 * past p_filesz with zeros). Sections, alignment gaps and .bss go. Offsets stay congruent to addresses modulo a page.
 */
export function packKernel(elf: Buffer): Buffer {
  const found = segments(elf);
  const loads = found.filter(({ type }) => type === PT_LOAD).sort((a, b) => a.offset - b.offset);
  if (loads.length === 0) throw new RangeError('no segment to load');
  const head = Buffer.from(elf.subarray(0, EHDR_SIZE + found.length * PHDR_SIZE));
  head.writeBigUInt64LE(BigInt(EHDR_SIZE), 0x20); // e_phoff
  head.writeBigUInt64LE(0n, 0x28); // e_shoff
  head.writeUInt16LE(0, 0x3c); // e_shnum
  head.writeUInt16LE(0, 0x3e); // e_shstrndx
  const chunks: Buffer[] = [head];
  let end = head.length;
  const moved: { from: Segment; kept: number; to: number }[] = [];
  for (const from of loads) {
    const data = withoutTrailingZeros(elf.subarray(from.offset, from.offset + from.fileSize));
    const gap = (from.address - (end % PAGE) + PAGE) % PAGE;
    chunks.push(Buffer.alloc(gap), data);
    moved.push({ from, kept: data.length, to: end + gap });
    end += gap + data.length;
  }
  found.forEach((segment, index) => {
    const home = moved.find(({ from, kept }) => {
      const start = segment.offset - from.offset;
      return segment === from || (start >= 0 && start + segment.fileSize <= kept);
    });
    if (home === undefined) throw new RangeError(`segment ${index} lies in no loaded segment`);
    const header = EHDR_SIZE + index * PHDR_SIZE;
    elf.copy(head, header, segment.header, segment.header + PHDR_SIZE);
    head.writeBigUInt64LE(BigInt(home.to + segment.offset - home.from.offset), header + 0x08);
    head.writeBigUInt64LE(BigInt(segment === home.from ? home.kept : segment.fileSize), header + 0x20);
    if (segment.type === PT_LOAD) head.writeBigUInt64LE(BigInt(PAGE), header + 0x30);
  });
  return Buffer.concat(chunks, end);
}

function segments(elf: Buffer): Segment[] {
  checkHeader(elf);
  const table = Number(elf.readBigUInt64LE(0x20));
  const count = elf.readUInt16LE(0x38);
  if (table + count * PHDR_SIZE > elf.length) throw new RangeError('program header table outside the file');
  return Array.from({ length: count }, (_, index) => {
    const header = table + index * PHDR_SIZE;
    const offset = Number(elf.readBigUInt64LE(header + 0x08));
    const fileSize = Number(elf.readBigUInt64LE(header + 0x20));
    if (offset + fileSize > elf.length) throw new RangeError(`segment ${index} outside the file`);
    // Only the address's low bits matter, and they fit a number.
    const address = Number(elf.readBigUInt64LE(header + 0x10) & BigInt(PAGE - 1));
    return { header, type: elf.readUInt32LE(header), offset, fileSize, address };
  });
}

function checkHeader(elf: Buffer): void {
  if (elf.length < EHDR_SIZE || elf.readUInt32BE(0) !== 0x7f454c46 || elf[4] !== 2 || elf[5] !== 1)
    throw new RangeError('not a 64-bit little-endian ELF file');
}

function withoutTrailingZeros(data: Buffer): Buffer {
  let end = data.length;
  while (end > 1 && data[end - 1] === 0) end -= 1;
  return data.subarray(0, end);
}

const SIGNATURE_END = Buffer.from('~Module signature appended~\n', 'latin1');

/**
 * A module without its appended signature (the kernel's scripts/sign-file.c: data, signature, 12-byte descriptor whose last
 * word is the signature's length, marker). The image as a whole is checked by digest on the host before it boots, so the
 * guest kernel need not parse PKCS#7 and verify RSA once per module: that is milliseconds of every start.
 */
export function withoutSignature(module: Buffer): Buffer {
  const descriptor = module.length - SIGNATURE_END.length - 12;
  if (descriptor < 0 || !module.subarray(descriptor + 12).equals(SIGNATURE_END)) return module;
  const length = module.readUInt32BE(descriptor + 8);
  if (length > descriptor) throw new RangeError('module signature longer than the module');
  return module.subarray(0, descriptor - length);
}
