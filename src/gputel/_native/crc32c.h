/* CRC-32C (Castagnoli, RFC 3720 appendix B.4): by the processor's instruction where there is
 * one, by tables of eight bytes elsewhere. gputel_crc32c_init fills the tables; call it first.
 */
#ifndef GPUTEL_CRC32C_H
#define GPUTEL_CRC32C_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define GPUTEL_CRC32C_POLYNOMIAL 0x82F63B78u /* reflected */

static uint32_t gputel_crc32c_table[8][256];

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
__attribute__((target("sse4.2"))) static inline uint32_t
gputel_crc32c_hardware(const uint8_t *data, size_t size)
{
    uint64_t crc = ~0u;
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
