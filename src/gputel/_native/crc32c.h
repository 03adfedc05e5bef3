/* CRC-32C (Castagnoli, RFC 3720 appendix B.4): by the processor's instruction where there is
 * one, by tables of eight bytes elsewhere. gputel_crc32c_init fills the tables; call it first.
 */
#ifndef GPUTEL_CRC32C_H
#define GPUTEL_CRC32C_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define GPUTEL_CRC32C_POLYNOMIAL 0x82F63B78u /* reflected */
#define GPUTEL_CRC32C_LANE 1024               /* bytes; a multiple of 8 */

static uint32_t gputel_crc32c_table[8][256];
static uint32_t gputel_crc32c_skips[4][256]; /* what a lane of zeros makes of each byte */

static inline void gputel_crc32c_init(void)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? GPUTEL_CRC32C_POLYNOMIAL : 0);
        gputel_crc32c_table[0][byte] = crc;
    }
    for (uint32_t byte = 0; byte < 256; byte++)
        for (int slice = 1; slice < 8; slice++) {
            uint32_t before = gputel_crc32c_table[slice - 1][byte];
            gputel_crc32c_table[slice][byte] =
                before >> 8 ^ gputel_crc32c_table[0][before & 0xFF];
        }
    for (int part = 0; part < 4; part++)
        for (uint32_t byte = 0; byte < 256; byte++) {
            uint32_t crc = byte << 8 * part;
            for (int i = 0; i < GPUTEL_CRC32C_LANE; i++)
                crc = crc >> 8 ^ gputel_crc32c_table[0][crc & 0xFF];
            gputel_crc32c_skips[part][byte] = crc;
        }
}

static inline uint32_t gputel_crc32c_portable(const uint8_t *data, size_t size)
{
    uint32_t crc = ~0u;
    for (; size >= 8; size -= 8, data += 8) {
        uint32_t low, high;
        memcpy(&low, data, 4);
        memcpy(&high, data + 4, 4);
        low ^= crc;
        crc = 0;
        for (int i = 0; i < 4; i++) {
            crc ^= gputel_crc32c_table[7 - i][low >> 8 * i & 0xFF];
            crc ^= gputel_crc32c_table[3 - i][high >> 8 * i & 0xFF];
        }
    }
    while (size--)
        crc = crc >> 8 ^ gputel_crc32c_table[0][(crc ^ *data++) & 0xFF];
    return ~crc;
}

#if defined(__x86_64__)
static inline uint32_t gputel_crc32c_skip(uint32_t crc)
{
    return gputel_crc32c_skips[0][crc & 0xFF] ^ gputel_crc32c_skips[1][crc >> 8 & 0xFF] ^
           gputel_crc32c_skips[2][crc >> 16 & 0xFF] ^ gputel_crc32c_skips[3][crc >> 24];
}

/* PERF(lanes): the instruction takes three cycles, and begins anew in each: three sums at once. */
__attribute__((target("sse4.2"))) static inline uint32_t
gputel_crc32c_hardware(const uint8_t *data, size_t size)
{
    uint64_t crc = ~0u;
    for (; size >= 3 * GPUTEL_CRC32C_LANE; size -= 3 * GPUTEL_CRC32C_LANE) {
        uint64_t second = 0, third = 0;
        for (const uint8_t *end = data + GPUTEL_CRC32C_LANE; data < end; data += 8) {
            uint64_t words[3];
            memcpy(&words[0], data, 8);
            memcpy(&words[1], data + GPUTEL_CRC32C_LANE, 8);
            memcpy(&words[2], data + 2 * GPUTEL_CRC32C_LANE, 8);
            crc = __builtin_ia32_crc32di(crc, words[0]);
            second = __builtin_ia32_crc32di(second, words[1]);
            third = __builtin_ia32_crc32di(third, words[2]);
        }
        data += 2 * GPUTEL_CRC32C_LANE;
        crc = gputel_crc32c_skip((uint32_t)crc) ^ (uint32_t)second;
        crc = gputel_crc32c_skip((uint32_t)crc) ^ (uint32_t)third;
    }
    for (; size >= 8; size -= 8, data += 8) {
        uint64_t word;
        memcpy(&word, data, 8);
        crc = __builtin_ia32_crc32di(crc, word);
    }
    while (size--)
        crc = __builtin_ia32_crc32qi((uint32_t)crc, *data++);
    return ~(uint32_t)crc;
}
#endif

static inline uint32_t gputel_crc32c(const uint8_t *data, size_t size)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("sse4.2"))
        return gputel_crc32c_hardware(data, size);
#endif
    return gputel_crc32c_portable(data, size);
}

#endif
