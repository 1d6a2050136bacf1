import { randomBytes } from 'node:crypto';

const EHDR = 64;
const PHDR = 56;
const SHDR = 64;

function elfHeader(fields: {
  phoff?: number;
  phnum?: number;
  shoff?: number;
  shnum?: number;
  shstrndx?: number;
}): Buffer {
  const header = Buffer.alloc(EHDR);
  header.write('\x7fELF\x02\x01\x01', 'latin1');
  header.writeBigUInt64LE(BigInt(fields.phoff ?? 0), 0x20);
  header.writeBigUInt64LE(BigInt(fields.shoff ?? 0), 0x28);
  header.writeUInt16LE(fields.phnum ?? 0, 0x38);
  header.writeUInt16LE(fields.shnum ?? 0, 0x3c);
  header.writeUInt16LE(fields.shstrndx ?? 0, 0x3e);
  return header;
}

/**
 * An ELF kernel shaped as Linux's: segments aligned to 2 MiB in the file, a note inside the first one, zeros at the end of the
 * second. `load` answers what a loader puts where, the notes with it.
 */
export function elfKernel(content: Buffer, { noteOffset = 2 ** 21 + 16 } = {}) {
  const segments = [
    { type: 1, offset: 2 ** 21, address: 0x1000000n, size: content.length, memory: content.length },
    { type: 1, offset: 2 ** 22, address: 0x2a00000n, size: content.length, memory: content.length + 5000 },
    { type: 4, offset: noteOffset, address: 0x1000010n, size: 32, memory: 32 },
  ];
  const elf = Buffer.alloc(2 ** 22 + content.length + 1000);
  elfHeader({ phoff: EHDR, phnum: segments.length, shoff: elf.length - 500, shnum: 7, shstrndx: 6 }).copy(elf);
  for (const [index, { type, offset, address, size, memory }] of segments.entries()) {
    const at = EHDR + index * PHDR;
    elf.writeUInt32LE(type, at);
    elf.writeBigUInt64LE(BigInt(offset), at + 0x08);
    elf.writeBigUInt64LE(address + 0xffffffff80000000n, at + 0x10);
    elf.writeBigUInt64LE(address, at + 0x18);
    elf.writeBigUInt64LE(BigInt(size), at + 0x20);
    elf.writeBigUInt64LE(BigInt(memory), at + 0x28);
    if (type === 1) content.copy(elf, offset);
  }
  return { elf, load: loadSegments };
}

function loadSegments(elf: Buffer): { type: number; address: bigint; bytes: string }[] {
  return Array.from({ length: elf.readUInt16LE(0x38) }, (_, index) => {
    const at = Number(elf.readBigUInt64LE(0x20)) + index * PHDR;
    const number = (field: number) => Number(elf.readBigUInt64LE(at + field));
    const memory = Buffer.alloc(number(0x28));
    elf.copy(memory, 0, number(0x08), number(0x08) + number(0x20));
    return { type: elf.readUInt32LE(at), address: elf.readBigUInt64LE(at + 0x18), bytes: memory.toString('hex') };
  });
}

/** A kernel module with nothing but its .modinfo. */
export function elfModule(fields: Record<string, string>): Buffer {
  const modinfo = Buffer.from(
    Object.entries(fields)
      .map(([key, value]) => `${key}=${value}\0`)
      .join(''),
  );
  const names = Buffer.from('\0.modinfo\0.shstrtab\0');
  const shoff = EHDR + modinfo.length + names.length;
  const section = (name: number, offset: number, size: number): Buffer => {
    const header = Buffer.alloc(SHDR);
    header.writeUInt32LE(name, 0);
    header.writeUInt32LE(1, 4);
    header.writeBigUInt64LE(BigInt(offset), 0x18);
    header.writeBigUInt64LE(BigInt(size), 0x20);
    return header;
  };
  return Buffer.concat([
    elfHeader({ shoff, shnum: 3, shstrndx: 2 }),
    modinfo,
    names,
    Buffer.alloc(SHDR),
    section(1, EHDR, modinfo.length),
    section(10, EHDR + modinfo.length, names.length),
  ]);
}

/** A module as the kernel's build signs it: signature, descriptor that ends with its length, marker. */
export function signed(module: Buffer): Buffer {
  const signature = randomBytes(600);
  const descriptor = Buffer.alloc(12);
  descriptor[2] = 2; // PKCS#7
  descriptor.writeUInt32BE(signature.length, 8);
  return Buffer.concat([module, signature, descriptor, Buffer.from('~Module signature appended~\n')]);
}
