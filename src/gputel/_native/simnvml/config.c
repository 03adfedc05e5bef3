#include "config.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FILE_BYTES_MAX 65536
#define ITEM_BYTES_MAX 512
#define MS 1000000ULL
#define US 1000ULL
#define LATENCY_UNSET UINT64_MAX

static bool complain(const char *key, const char *value, const char *allowed)
{
    fprintf(stderr, "GPUTEL_SIM: %s=%s: %s\n", key, value, allowed);
    return false;
}

static bool whole(const char *text, uint64_t min, uint64_t max, uint64_t *value)
{
    char *end;
    errno = 0;
    if (!isdigit((unsigned char)*text))
        return false;
    *value = strtoull(text, &end, 10);
    return *end == '\0' && errno == 0 && min <= *value && *value <= max;
}

/* The place of `text` in `words`, which are separated by '|'; -1 when it is none. */
static int choice(const char *text, const char *words)
{
    size_t length = strlen(text);
    for (int place = 0;; place++) {
        size_t end = strcspn(words, "|");
        if (end == length && memcmp(words, text, length) == 0)
            return place;
        if (words[end] == '\0')
            return -1;
        words += end + 1;
    }
}

static bool read_gpus(sim_config *config, const char *text)
{
    uint64_t value;
    if (!whole(text, 1, SIM_GPUS_MAX, &value))
        return complain("gpus", text, "a number from 1 to 64 is allowed");
    config->gpus = (unsigned)value;
    return true;
}

static bool read_model(sim_config *config, const char *text)
{
    config->profile = sim_profile_named(text);
    if (config->profile)
        return true;
    fprintf(stderr, "GPUTEL_SIM: model=%s: one of %s is allowed\n", text, sim_profile_keys);
    return false;
}

static bool read_seed(sim_config *config, const char *text)
{
    return whole(text, 0, UINT64_MAX, &config->seed) ||
           complain("seed", text, "a number from 0 to 18446744073709551615 is allowed");
}

static bool read_profile(sim_config *config, const char *text)
{
    int place = choice(text, "idle|training|inference|mixed");
    config->workload = (sim_workload)place;
    return place >= 0 || complain("profile", text, "idle, training, inference or mixed is allowed");
}

static bool read_refresh(sim_config *config, const char *text)
{
    uint64_t value;
    if (!whole(text, 1, 10000, &value))
        return complain("refresh_ms", text, "a number from 1 to 10000 is allowed");
    config->refresh_ns = value * MS;
    return true;
}

static bool read_latency(sim_config *config, const char *text)
{
    uint64_t value;
    if (!whole(text, 0, 10000000, &value))
        return complain("latency_us", text, "a number from 0 to 10000000 is allowed");
    config->latency_others_ns = value * US;
    return true;
}

static bool read_function_latency(sim_config *config, const char *key, const char *text)
{
    int function = sim_function_named(key + strlen("latency."));
    uint64_t value;
    if (function < 0)
        return complain(key, text, "this is no NVML function of the simulated driver");
    if (!whole(text, 0, 10000000, &value))
        return complain(key, text, "a number of microseconds from 0 to 10000000 is allowed");
    config->latency_ns[function] = value * US;
    return true;
}

static bool read_wait(sim_config *config, const char *text)
{
    int place = choice(text, "sleep|spin");
    config->spin = place == 1;
    return place >= 0 || complain("wait", text, "spin or sleep is allowed");
}

static bool read_clock(sim_config *config, const char *text)
{
    int place = choice(text, "real|manual");
    config->manual = place == 1;
    return place >= 0 || complain("clock", text, "real or manual is allowed");
}

static bool read_timing(sim_config *config, const char *text)
{
    int place = choice(text, "off|on");
    config->timing = place == 1;
    return place >= 0 || complain("timing", text, "on or off is allowed");
}

static bool read_accounting(sim_config *config, const char *text)
{
    int place = choice(text, "off|on");
    config->accounting = place == 1;
    return place >= 0 || complain("accounting", text, "on or off is allowed");
}

static bool read_driver(sim_config *config, const char *text)
{
    size_t length = strspn(text, "0123456789.");
    if (length != strlen(text) || length < 5 || length >= sizeof config->driver ||
        !isdigit((unsigned char)*text) || !strchr(text, '.'))
        return complain("driver", text, "a driver's version such as 570.172.08 is allowed");
    strcpy(config->driver, text);
    return true;
}

static bool read_anchor(sim_config *config, const char *text)
{
    uint64_t value;
    if (!whole(text, 1, 10000000000, &value))
        return complain("anchor", text, "a Unix time in seconds is allowed");
    config->anchor_unix_ns = value * 1000 * MS;
    return true;
}

static bool read_pids(sim_config *config, const char *text)
{
    char copy[ITEM_BYTES_MAX], *rest = NULL;
    uint64_t value;
    snprintf(copy, sizeof copy, "%s", text);
    config->pid_count = 0;
    for (char *pid = strtok_r(copy, "+", &rest); pid; pid = strtok_r(NULL, "+", &rest)) {
        if (config->pid_count == SIM_PIDS_MAX || !whole(pid, 1, INT32_MAX, &value))
            return complain("pids", text, "up to 16 process ids joined by + are allowed");
        config->pids[config->pid_count++] = (unsigned)value;
    }
    return config->pid_count > 0 || complain("pids", text, "process ids joined by + are allowed");
}

static bool read_fault(sim_config *config, const char *text)
{
    char problem[256];
    if (config->fault_count == SIM_CONFIG_FAULTS_MAX)
        return complain("fault", text, "128 faults are allowed");
    int at = (int)config->fault_count;
    if (!sim_fault_parse(text, &config->faults[at].fault, &config->faults[at].gpu, problem,
                         sizeof problem))
        return complain("fault", text, problem);
    config->fault_count++;
    return true;
}

/* GPU:PROFILE+PROFILE; read when the model is known. */
static bool read_mig(sim_config *config, const char *text)
{
    char number[4];
    uint64_t gpu;
    size_t length = strcspn(text, ":");
    const char *profiles = text + length + 1;
    snprintf(number, sizeof number, "%.*s", (int)(length < 3 ? length : 3), text);
    if (text[length] != ':' || !whole(number, 0, SIM_GPUS_MAX - 1, &gpu) || length > 2 ||
        *profiles == '\0' || strlen(profiles) >= SIM_MIG_TEXT_BYTES_MAX)
        return complain("mig", text, "GPU:PROFILE+PROFILE is allowed, such as 0:3g.40gb+3g.40gb");
    strcpy(config->mig_text[gpu], profiles);
    return true;
}

static const struct {
    const char *key;
    bool (*read)(sim_config *config, const char *text);
} keys[] = {
    {"gpus", read_gpus},     {"model", read_model},     {"seed", read_seed},
    {"profile", read_profile}, {"refresh_ms", read_refresh}, {"latency_us", read_latency},
    {"wait", read_wait},     {"clock", read_clock},     {"timing", read_timing},
    {"accounting", read_accounting}, {"driver", read_driver}, {"anchor", read_anchor},
    {"pids", read_pids},     {"fault", read_fault},     {"mig", read_mig},
};

static bool read_item(sim_config *config, char *item)
{
    char *value = strchr(item, '=');
    if (!value)
        return complain(item, "", "a key needs a value");
    *value++ = '\0';
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (strcmp(keys[i].key, item) == 0)
            return keys[i].read(config, value);
    if (strncmp(item, "latency.", strlen("latency.")) == 0)
        return read_function_latency(config, item, value);
    return complain(item, value,
                    "the keys are gpus, model, seed, profile, refresh_ms, latency_us, "
                    "latency.FUNCTION, wait, clock, timing, accounting, driver, anchor, pids, "
                    "fault, mig");
}

static bool read_items(const char *text, sim_config *config)
{
    static const char separators[] = ",; \t\r\n";
    while (*(text += strspn(text, separators))) {
        if (*text == '#') { /* a comment, to the end of its line */
            text += strcspn(text, "\n");
            continue;
        }
        char item[ITEM_BYTES_MAX];
        size_t length = strcspn(text, separators);
        if (length >= sizeof item) {
            fprintf(stderr, "GPUTEL_SIM: an item of more than %d characters\n", ITEM_BYTES_MAX - 1);
            return false;
        }
        memcpy(item, text, length);
        item[length] = '\0';
        if (!read_item(config, item))
            return false;
        text += length;
    }
    return true;
}

static bool read_file(const char *path, sim_config *config)
{
    FILE *file = fopen(path, "re");
    if (!file) {
        fprintf(stderr, "GPUTEL_SIM: @%s: %s\n", path, strerror(errno));
        return false;
    }
    char *text = malloc(FILE_BYTES_MAX + 1);
    size_t length = text ? fread(text, 1, FILE_BYTES_MAX + 1, file) : 0;
    bool read = text && length <= FILE_BYTES_MAX && !ferror(file);
    fclose(file);
    if (read) {
        text[length] = '\0';
        read = read_items(text, config);
    } else {
        fprintf(stderr, "GPUTEL_SIM: @%s: a text of at most %d bytes is needed\n", path,
                FILE_BYTES_MAX);
    }
    free(text);
    return read;
}

static bool settle_mig(sim_config *config, unsigned gpu)
{
    char problem[128];
    const char *text = config->mig_text[gpu];
    if (*text == '\0')
        return true;
    if (gpu >= config->gpus) {
        fprintf(stderr, "GPUTEL_SIM: mig=%u:%s: there are gpus=%u, the first is 0\n", gpu, text,
                config->gpus);
        return false;
    }
    if (sim_mig_read(text, config->profile, &config->mig[gpu], problem, sizeof problem))
        return true;
    fprintf(stderr, "GPUTEL_SIM: mig=%u:%s: %s\n", gpu, text, problem);
    return false;
}

/* What depends on two keys: the order in which they stand does not matter. */
static bool settle(sim_config *config)
{
    config->branch = (unsigned)strtoul(config->driver, NULL, 10);
    for (int i = 0; i < SIM_FUNCTIONS; i++)
        if (config->latency_ns[i] == LATENCY_UNSET)
            config->latency_ns[i] = config->latency_others_ns;
    for (unsigned i = 0; i < config->fault_count; i++)
        if (config->faults[i].gpu >= (int)config->gpus) {
            fprintf(stderr, "GPUTEL_SIM: fault: gpu=%d: there are gpus=%u, the first is 0\n",
                    config->faults[i].gpu, config->gpus);
            return false;
        }
    for (unsigned i = 0; i < SIM_GPUS_MAX; i++)
        if (!settle_mig(config, i))
            return false;
    return true;
}

bool sim_config_read(const char *text, sim_config *config)
{
    *config = (sim_config){
        .gpus = 8,
        .profile = sim_profile_named("h100"),
        .workload = SIM_MIXED,
        .refresh_ns = 100 * MS,
        .spin = true,
        .driver = "575.57.08",
    };
    for (int i = 0; i < SIM_FUNCTIONS; i++)
        config->latency_ns[i] = LATENCY_UNSET;
    if (!text)
        text = "";
    bool read = *text == '@' ? read_file(text + 1, config) : read_items(text, config);
    return read && settle(config);
}
