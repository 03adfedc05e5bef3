-- A hot partition that is being sealed takes no rows any more: its constraint `frozen` is
-- CHECK (gputel_frozen()) NOT VALID, which is asked of new rows only (gputel.store.frozen). It refuses
-- them as a serialization failure, so that who does not know of it waits and tries again.
CREATE OR REPLACE FUNCTION gputel_frozen() RETURNS boolean
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    RAISE EXCEPTION 'this partition is being sealed and takes no rows any more'
        USING ERRCODE = 'serialization_failure', CONSTRAINT = 'frozen',
              HINT = 'late rows are stored as chunks meanwhile';
END;
$$;
